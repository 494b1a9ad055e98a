"""`sweep` by several processes: every cell once, by whoever has it; kills and failures leave the rest to be done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Small = tuple[str, ...]
JOBLIB = ("--launcher", "joblib", "--jobs", "2")
# Two sweeps at once, without a launcher: forked, so that packages are imported once.
TWICE = """
import os, sys
from personalign.cli import main
from personalign.commands.run import ready
ready()
import personalign.experiment
children = []
for number in range(2):
    children.append(os.fork())
    if children[-1] == 0:
        os.dup2(os.open(f"{number}.log", os.O_CREAT | os.O_WRONLY), 1)
        os._exit(main(["sweep", "grid.yaml"]))
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
# A generation that ends its process without a word.
POISON = '''
from __future__ import annotations
import os, signal
from personalign.generation.plain import Plain

class Poison(Plain):
    """Ends the process that asks it for a plan."""
    needs = ()
    def plan(self, request, state, spec):
        os.kill(os.getpid(), signal.SIGKILL)
'''


def write(people: Path, small: Small, rows: dict[str, list[str]], seeds: int = 1) -> Path:
    content = {"title": "Rows", "base": list(small), "rows": rows, "seeds": list(range(seeds))}
    (people / "grid.yaml").write_text(json.dumps(content))
    return people / "grid.yaml"


def standing(runs: str = "runs") -> dict[str, str]:
    cells = json.loads(Path(runs, "sweeps/grid/sweep.json").read_text())["cells"]
    return {f"{cell['row']} {cell['overrides'][-1]}": cell["status"] for cell in cells}


def figures(runs: str) -> dict[str, Any]:
    """What the records of a folder say, but for times and places."""
    found = {}
    for path in Path(runs).glob("*/record.json"):
        metrics = json.loads(path.read_text())["metrics"]
        found[path.parent.name] = {name: one for name, one in metrics.items() if name != "tokens_per_second"}
    return found


def begun(runs: Path) -> list[Path]:
    return [path for path in runs.glob("*/samples-0.jsonl") if path.stat().st_size]


def wait_until(true: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def test_two_sweeps_at_once_do_every_cell_once(people: Path, small: Small) -> None:
    write(people, small, {"base": [], "warmer": ["sampling.temperature=1.0"]}, seeds=3)
    alone = {"OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "false"}
    done = subprocess.run([sys.executable, "-c", TWICE], env={**os.environ, **alone}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logs = [Path(f"{number}.log").read_text() for number in range(2)]
    computed = [re.findall(r"^\[(\d)/6\] done in", log, flags=re.M) for log in logs]
    assert sorted(computed[0] + computed[1]) == list("123456"), logs
    assert len(list(Path("runs").glob("*/record.json"))) == 6
    assert "done" in set(standing().values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--launcher", "joblib"), "how many cells at once? --jobs N, of 1 or more"),
        (("--launcher", "joblib", "--jobs", "0"), "how many cells at once? --jobs N, of 1 or more"),
        (("--jobs", "2"), "--jobs and --launcher-option go with --launcher joblib|submitit|ray"),
        (("--launcher", "slurm", "--jobs", "2"), "invalid choice: 'slurm'"),
        (("--launcher", "submitit", "--jobs", "2", "--launcher-option", "x"), "--launcher-option x: write KEY=VALUE"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    words: tuple[str, ...], told: str, people: Path, small: Small, personalign: Command
) -> None:
    write(people, small, {"base": []})
    said = personalign("sweep", "grid.yaml", *words)
    assert (said.code, said.out) == (2, "") and told in said.err
    assert not Path("runs").exists()


def test_a_launcher_whose_package_is_missing_names_the_extra(
    people: Path, small: Small, personalign: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    write(people, small, {"base": []})
    said = personalign("sweep", "grid.yaml", *JOBLIB)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "personalign: error: --launcher joblib needs the package joblib, which is not installed: "
        "pip install 'personalign[joblib]'"
    ]


def test_side_by_side_comes_to_the_same_as_one_after_the_other(
    people: Path, small: Small, personalign: Command, start: Callable[..., Any]
) -> None:
    """Failures are told and stop nothing, lines are whole, and a second time there is nothing to do."""
    pytest.importorskip("joblib")
    write(people, small, {"base": [], "lost": ["data.path=nowhere"], "warmer": ["sampling.temperature=1.0"]}, seeds=1)
    process = start("sweep", "grid.yaml", *JOBLIB)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert err == ""
    cells = ["base, seed=0", "lost, seed=0", "warmer, seed=0"]
    told = [line for line in out.splitlines() if line.startswith("[")]
    for number, cell in enumerate(cells, start=1):
        ending = "failed: nowhere: no such folder.*" if "lost" in cell else r"done in [\d:]+( s)?"
        own = [line for line in told if line.startswith(f"[{number}/3] {cell}")]
        assert re.fullmatch(rf"\[{number}/3\] {cell}: {ending}", own[-1]), told
        assert own[:-1] in ([], [f"[{number}/3] {cell}"])  # what ends at once is not seen to begin
    assert set(standing().values()) == {"done", "failed"}
    runs = [json.loads(path.read_text()) for path in Path("runs").glob("*/status.json")]
    assert [run["starts"] for run in runs] == [1, 1, 1], "each was begun once, the failing one too"
    assert process.pid not in {run["pid"] for run in runs}
    assert personalign("sweep", "grid.yaml", "paths.runs=other").code == 1
    assert figures("runs") == figures("other") and len(figures("runs")) == 2
    before = {path: path.read_bytes() for path in Path("runs").glob("*/record.json")}
    again = personalign("sweep", "grid.yaml", *JOBLIB)
    assert "3 cells, 2 done, 1 to compute" in again.out and again.code == 1
    assert {path: path.read_bytes() for path in Path("runs").glob("*/record.json")} == before


@pytest.mark.slow
def test_a_cell_that_ends_its_process_does_not_stop_the_rest(
    people: Path, small: Small, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("joblib")
    (people / "own/conf/generation").mkdir(parents=True)
    (people / "own/conf/generation/poison.yaml").write_text("# Ends the process.\n_target_: poison_parts.Poison\n")
    (people / "poison_parts.py").write_text(POISON)
    monkeypatch.setenv("PERSONALIGN_PATH", str(people / "own"))
    monkeypatch.setenv("PYTHONPATH", f"{people}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    write(people, small, {"bad": ["generation=poison"], "base": [], "warmer": ["sampling.temperature=1.0"]})
    process = start("sweep", "grid.yaml", *JOBLIB)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert standing() == {"bad seed=0": "interrupted", "base seed=0": "done", "warmer seed=0": "done"}
    assert "[1/3] bad, seed=0: its process was killed" in out
    assert "[1/3] bad, seed=0: not done, its process was killed; the same command goes on" in out


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ctrl-c", "kill", "kill -9"])
def test_what_was_ended_goes_on(
    ending: str, people: Path, small: Small, start: Callable[..., Any], personalign: Command
) -> None:
    """No worker outlives the sweep, and the same command, with a launcher or without, ends it."""
    pytest.importorskip("joblib")
    long = ("sampling.max_new_tokens=200", "decoding.batch_size=1")
    write(people, (*small, *long), {"base": [], "warmer": ["sampling.temperature=1.0"]}, seeds=2)
    process = start("sweep", "grid.yaml", *JOBLIB)
    wait_until(lambda: len(begun(Path("runs"))) == 2)
    workers = {json.loads(path.with_name("status.json").read_text())["pid"] for path in begun(Path("runs"))}
    process.send_signal({"ctrl-c": signal.SIGINT, "kill": signal.SIGTERM, "kill -9": signal.SIGKILL}[ending])
    _, err = process.communicate(timeout=60)
    if ending == "ctrl-c":
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("personalign: interrupted; the same command goes on from here: ")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=30)
    told = [one["status"] for one in json.loads(personalign("status", "--json").out)]
    assert "interrupted" in told and "running" not in told
    assert personalign("sweep", "grid.yaml").code == 0
    assert set(standing().values()) == {"done"}
