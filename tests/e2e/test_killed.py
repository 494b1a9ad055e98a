"""kill -9 at random points of the real command, training included, then the same command: the same record."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

RUN = [
    "model=tiny",
    "precision=fp32",
    "data.users=4",
    "data.pool=shipped",
    "sampling.max_new_tokens=12",
    "decoding.batch_size=2",
    "requests.pairs=2",
    "memory=statement",
    "generation=preference_prompt",
    "alignment=dpo",
    "alignment.dpo.steps=40",
    "alignment.dpo.checkpoint_every=4",
]
CHANGES = ("cost", "provenance", "config")  # times, the host, and where the runs lie
# Parts of a whole run's time after which it is killed; a run that goes on is shorter than a whole one.
MOMENTS = (0.35, 0.6, 0.3, 0.5, 0.25, 0.4)


def start(runs: Path) -> subprocess.Popen[bytes]:
    words = [*RUN, f"paths.runs={runs}", f"paths.cache={runs.parent / 'cache'}"]
    return subprocess.Popen(
        [sys.executable, "-m", "personalign", "run", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def result(runs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record without what may differ, and the trained weights."""
    (path,) = runs.glob("*/record.json")
    record = json.loads(path.read_text())
    kept = {name: value for name, value in record.items() if name not in CHANGES}
    kept["metrics"] = {name: value for name, value in kept["metrics"].items() if name != "tokens_per_second"}
    (weights,) = runs.glob("policies/checkpoints/*/*/adapter_model.safetensors")
    return kept, load_file(weights)


@pytest.mark.slow
def test_killed_in_training_and_in_answering(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - began
    draw, seen = random.Random(3), set()
    for moment in MOMENTS:
        process = start(broken)
        time.sleep(seconds * (moment + 0.1 * draw.random()))
        if process.poll() is None:
            process.kill()
            seen.add("answering" if any(broken.glob("*/samples-0.jsonl")) else "training")
        process.wait()
    assert seen == {"training", "answering"}, "the moments of the kills missed a phase"
    assert start(broken).wait() == 0
    (record, weights), (expected, other) = result(broken), result(whole)
    assert record == expected
    assert weights.keys() == other.keys() and all((weights[k] == other[k]).all() for k in weights)
