"""A run of several processes that is ended from outside: nothing of it goes on, and the same command finishes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

RUN = [
    "model=tiny",
    "precision=fp32",
    "data.users=4",
    "data.pool=shipped",
    "requests.limit=3",
    "requests.pairs=2",
    "sampling.max_new_tokens=100",
    "decoding.batch_size=1",
    "alignment=dpo",
    "alignment.dpo.steps=60",
    "alignment.dpo.batch_size=4",
    "alignment.dpo.checkpoint_every=3",
]
TWO = ("trainer=ddp_cpu", "devices=2")
CHANGES = ("cost", "provenance", "config")  # times, the host, and where the runs lie

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="processes are looked up in /proc")


def command(runs: Path) -> list[str]:
    return ["run", *RUN, *TWO, f"paths.runs={runs}", f"paths.cache={runs.parent / 'cache'}"]


def start(runs: Path) -> subprocess.Popen[str]:
    """The command in a session of its own, which hears Ctrl-C as at a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "personalign", *command(runs)],
        env={**os.environ, "PERSONALIGN_QUIET": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def processes(runs: Path) -> list[str]:
    """All that have the folder of runs on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.removeprefix("paths.runs=").startswith(str(runs)) for word in words):
            found.append(" ".join(words))
    return found


def until(true: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    last = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, "it ended too soon"
        assert time.monotonic() < last, "it took too long"
        time.sleep(0.02)


def training(runs: Path) -> bool:
    return any(runs.glob("policies/checkpoints/*/last.ckpt"))


def answering(runs: Path) -> bool:
    return all(any(path.stat().st_size for path in runs.glob(f"*/samples-{rank}.jsonl")) for rank in range(2))


def status(runs: Path) -> str:
    words = [sys.executable, "-m", "personalign", "status", str(runs), "--json"]
    (run,) = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return str(run["status"])


def result(runs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record without what may differ, and the trained weights."""
    (path,) = runs.glob("*/record.json")
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in CHANGES}
    kept["metrics"] = {name: value for name, value in kept["metrics"].items() if name != "tokens_per_second"}
    (weights,) = runs.glob("policies/checkpoints/*/*/adapter_model.safetensors")
    return kept, load_file(weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes of it where nobody ends it."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert start(runs).wait() == 0
    return runs


def same(runs: Path, expected: Path) -> None:
    (record, weights), (wanted, others) = result(runs), result(expected)
    assert record == wanted
    assert weights.keys() == others.keys() and all((weights[k] == others[k]).all() for k in weights)


@pytest.mark.slow
def test_kill_9_of_the_parent_ends_its_ranks_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for moment in (training, answering):
        process = start(runs)
        until(lambda moment=moment: moment(runs), process)  # type: ignore[misc]
        assert len(processes(runs)) == 3
        process.kill()
        until(lambda: not processes(runs), seconds=3)
        assert process.communicate()[1] == ""
        assert status(runs) == "interrupted"
    process = start(runs)
    assert (process.communicate()[1], process.returncode) == ("", 0)
    same(runs, whole)


@pytest.mark.slow
def test_a_run_that_ctrl_c_ended_goes_on(whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start(runs)
    until(lambda: training(runs), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert start(runs).wait() == 0
    same(runs, whole)


@pytest.mark.parametrize("pause", [None, 0.0, 0.1], ids=["once", "twice", "twice, slowly"])
def test_ctrl_c_is_one_plain_line_and_leaves_no_rank(pause: float | None, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start(runs)
    until(lambda: training(runs), process)
    os.killpg(process.pid, signal.SIGINT)
    if pause is not None:
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    (line,) = err.splitlines()
    told = "personalign: interrupted; the same command goes on from here: personalign "
    assert line == told + " ".join(command(runs))
    until(lambda: not processes(runs), seconds=3)
    assert status(runs) == "interrupted" and training(runs)
