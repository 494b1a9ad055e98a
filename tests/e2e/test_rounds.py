"""The closed loop through the real command: killed with -9 between and within rounds, and on two processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RUN = [
    "model=tiny",
    "precision=fp32",
    "memory=stance_inferred",
    "generation=best_of_n",
    "reward@guide=exact",
    "feedback=simulated",
    "query=d_optimal",
    "rounds=4",
    "asking.requests=2",
    "data.users=4",
    "data.pool=shipped",
    "data.history=0",
    "requests.limit=6",
    "requests.pairs=1",
    "sampling.n=2",
    "sampling.temperature=1.0",
    "sampling.max_new_tokens=12",
    "decoding.batch_size=4",
    "evaluation.resamples=20",
]
CHANGES = ("cost", "provenance", "config")  # times, the host, and where the runs lie


def start(runs: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [*RUN, f"paths.runs={runs}", f"paths.cache={runs.parent / 'cache'}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "personalign", "run", *words],
        env={**os.environ, "PERSONALIGN_QUIET": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def result(runs: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record without what may differ, and what was asked without its seconds and what had been kept."""
    (path,) = runs.glob("*/record.json")
    record = json.loads(path.read_text())
    kept = {name: value for name, value in record.items() if name not in CHANGES}
    for figures in (kept["metrics"], *(point["metrics"] for point in kept["rounds"])):
        figures.pop("tokens_per_second", None)
    lines = [json.loads(line) for line in (path.parent / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        del line["cost"]["seconds"], line["cost"]["reused_tokens"]
    return kept, lines


def lines(runs: Path) -> int:
    """How many rounds have been kept."""
    (path,) = list(runs.glob("*/rounds.jsonl")) or [None]
    return path.read_bytes().count(b"\n") if path else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert start(runs).wait() == 0
    return runs


@pytest.mark.slow
def test_killed_between_rounds_and_within(whole: Path, tmp_path: Path) -> None:
    draw, runs, stopped = random.Random(5), tmp_path / "runs", []
    for known in range(4):
        process = start(runs)
        while process.poll() is None and lines(runs) <= known:
            time.sleep(0.002)
        time.sleep(0.15 * draw.random())
        if process.poll() is None:
            process.kill()
            stopped.append(lines(runs))
        process.wait()
    assert len(stopped) >= 3 and not list(runs.glob("*/record.json")), "the kills came too late"
    assert start(runs).wait() == 0
    assert result(runs) == result(whole)


@pytest.mark.slow
def test_two_processes_ask_and_answer_what_one_does(whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert start(runs, "trainer=ddp_cpu", "devices=2").wait() == 0
    assert len(list(runs.glob("*/samples-*.jsonl"))) == 2, "both ranks answered"
    assert result(runs) == result(whole)
