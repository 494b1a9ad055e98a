"""Answering on several processes through the real CLI: killed on so many, finished on another number of them, and ranks
whose shares of the work are as unequal as can be. The answers and figures are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = [
    "model=tiny",
    "precision=fp32",
    "data.users=3",
    "data.pool=shipped",
    "requests.limit=4",
    "requests.pairs=2",
    "memory=stance_stated",
    "generation=best_of_n",
    "reward@guide=exact",
    "sampling.n=3",
    "sampling.temperature=1.0",
    "sampling.max_new_tokens=24",
    "decoding.batch_size=6",  # fixed groups of two requests
    "decoding.token_budget=4000",
]
FIXED, CONTINUOUS = "decoding.grouping=fixed", "decoding.grouping=continuous"
TWO, THREE = ("trainer=ddp_cpu", "devices=2"), ("trainer=ddp_cpu", "devices=3")
ZERO3 = ("trainer=deepspeed_cpu", "devices=2", "trainer.zero_stage=3", "alignment=dpo", "alignment.dpo.steps=2")
# A rank is killed when it is about to write so many answers and one: between those of one request.
KILLS = """
import os, signal, sys
rank, seen = os.environ.get("RANK", "0"), [0]
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(f"samples-{rank}.jsonl") and arguments[2] & os.O_RDWR:
        seen[0] += 1
        if seen[0] > int(os.environ["KILL_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("KILL_RANK") == rank:
    sys.addaudithook(hook)
"""


def run(runs: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "personalign", "run", *RUN, *words, f"paths.runs={runs}"],
        env={**os.environ, "PERSONALIGN_QUIET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def killed(folder: Path, rank: int, after: int, *words: str) -> None:
    """Run until the rank is killed behind so many of its answers."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KILLS)
    paths = os.pathsep.join(path for path in (str(folder), os.environ.get("PYTHONPATH")) if path)
    done = run(folder / "runs", *words, PYTHONPATH=paths, KILL_RANK=str(rank), KILL_AFTER=str(after))
    assert done.returncode not in (0, 2)
    (left,) = folder.glob(f"runs/*/samples-{rank}.jsonl")
    assert len(left.read_text().splitlines()) == after


def result(runs: Path) -> tuple[dict[str, float], dict[str, tuple[Any, ...]]]:
    """The figures, and the answer that each request was given."""
    (path,) = runs.glob("*/record.json")
    metrics = json.loads(path.read_text())["metrics"]
    rows = [json.loads(line) for line in path.with_name("answers.jsonl").read_text().splitlines()]
    figures = {name: figure["value"] for name, figure in metrics.items() if name != "tokens_per_second"}
    return figures, {row["request"]: (row["user"], row["text"]) for row in rows}


def same(runs: Path, expected: Path) -> None:
    """Threads are shared out among ranks, so that figures agree up to the rounding of float32."""
    (figures, answers), (wanted, given) = result(runs), result(expected)
    assert answers == given and len(answers) == 12
    assert figures == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    runs = tmp_path_factory.mktemp("one")
    done = run(runs, FIXED)
    assert done.returncode == 0, done.stderr
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("grouping", [FIXED, CONTINUOUS])
def test_three_processes_answer_as_one_does(grouping: str, one: Path, tmp_path: Path) -> None:
    done = run(tmp_path, grouping, *THREE)
    assert done.returncode == 0, done.stderr
    same(tmp_path, one)
    shares = [path.read_text().splitlines() for path in tmp_path.glob("*/samples-*.jsonl")]
    assert sorted(map(len, shares)) == [12, 12, 12]


@pytest.mark.slow
@pytest.mark.parametrize("grouping", [FIXED, CONTINUOUS])
@pytest.mark.parametrize(
    ("first", "rank", "then"), [(TWO, 1, ()), (TWO, 0, THREE), ((), 0, TWO)], ids=["2-1", "2-3", "1-2"]
)
def test_killed_on_so_many_and_finished_on_others(
    first: tuple[str, ...], rank: int, then: tuple[str, ...], grouping: str, one: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    killed(folder, rank, 8, grouping, *first)
    done = run(folder / "runs", grouping, *then)
    assert done.returncode == 0, done.stderr
    same(folder / "runs", one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shares"),
    [((FIXED, "decoding.batch_size=99"), [36]), ((CONTINUOUS, "requests.limit=1"), [6, 3])],
    ids=["one group", "three requests"],
)
def test_after_zero_3_ranks_answer_as_long_as_each_has_to(
    words: tuple[str, ...], shares: list[int], tmp_path: Path
) -> None:
    """Every rank forwards with the whole model: one with less to do, or nothing, waits for the other one's longest."""
    done = run(tmp_path / "two", *words, *ZERO3)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "two").glob("*/samples-*.jsonl"))
    made = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    assert [len(rows) for rows in made if rows] == shares
    assert max(len(row["tokens"]) for row in made[0]) == 24
    done = run(tmp_path / "one", *words, "alignment=dpo", "alignment.dpo.steps=2")
    assert done.returncode == 0, done.stderr
    (figures, answers), (wanted, given) = result(tmp_path / "two"), result(tmp_path / "one")
    assert answers == given and figures == pytest.approx(wanted, rel=1e-3, abs=1e-3)
