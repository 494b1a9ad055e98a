"""kill -9 at random points of the real command, training included, then the same command: the same record."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from personalign.composition.compose import compose
from personalign.composition.home import choices
from personalign.composition.validate import IllegalComposition

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


SMALL = [
    "model=tiny",
    "precision=fp32",
    "data.users=4",
    "data.pool=shipped",
    "sampling.max_new_tokens=3",
    "decoding.batch_size=2",
    "requests.limit=1",
    "requests.pairs=1",
]
# What a stage may need before it and beside it.
BEFORE = ([], ["dpo"], ["pad"])
BESIDE = ([], ["memory=statement", "generation=preference_prompt"], ["memory=stance_head", "generation=pad"])
SHORT = {"steps": 2, "batch_size": 2, "checkpoint_every": 1}


def legal(stage: str) -> list[str]:
    """A composition that trains a stage, whatever it needs before it, in very few steps."""
    for before, beside in itertools.product(BEFORE, BESIDE):
        words = [*SMALL, *beside, f"alignment=[{','.join([*before, stage])}]"]
        try:
            stages = compose(words).alignment
        except IllegalComposition:
            continue
        short = [f"alignment.{name}.{key}={n}" for name in stages for key, n in SHORT.items() if key in stages[name]]
        return [*words, *short]
    raise AssertionError(f"no composition trains {stage}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted({*choices("alignment")} - {"none"}))
def test_killed_at_every_kind_of_write_of_every_stage(stage: str, tmp_path: Path) -> None:
    """Before each first and last opening, renaming, removing; what is trained then has the same bytes."""
    kinds = killed(legal(stage), tmp_path)
    assert {f"os.rename {name}" for name in ("config.yaml", "status.json", "done.json", "record.json")} < kinds
    assert {"open samples-0.jsonl", "os.rename last.ckpt", "os.remove last.ckpt"} < kinds


# Two rounds, after each of which the policy learns from what was said too.
LOOP = [
    "memory=stance_inferred",
    "generation=best_of_n",
    "reward@guide=exact",
    "sampling.n=2",
    "sampling.temperature=1.0",
    "sampling.max_new_tokens=8",
    "feedback=simulated",
    "query=d_optimal",
    "rounds=2",
    "asking.requests=1",
    "asking.answers=3",
    "asking.refit=true",
    "data.history=0",
    "alignment=dpo",
    *(f"alignment.dpo.{key}={n}" for key, n in SHORT.items()),
]


@pytest.mark.slow
def test_killed_at_every_kind_of_write_of_a_closed_loop(tmp_path: Path) -> None:
    """Before a round's questions are kept too: nobody is asked twice, and what memory and policy learn is the same."""
    kinds = killed([*SMALL, *LOOP], tmp_path)
    assert {"open rounds.jsonl", "open samples-0.jsonl", "os.rename last.ckpt", "os.rename record.json"} < kinds


TUNED = [
    "memory=cos_lambda",
    "generation=multi_cos",
    "tune.strengths=[0.5,2]",
    "tune.requests=1",
    "tune.perplexity=1e6",
    "sampling.max_new_tokens=8",
]


@pytest.mark.slow
def test_killed_at_every_kind_of_write_while_a_strength_is_chosen(tmp_path: Path) -> None:
    """The answers that are tried, what each strength came to, what memory worked out: nothing is lost or changed."""
    kinds = killed([*SMALL, *TUNED], tmp_path)
    assert {"open tuning.jsonl", "open samples-0.jsonl", "os.rename #.json", "os.rename record.json"} < kinds


def killed(words: list[str], folder: Path) -> set[str]:
    """Kill a run at its first and last write of each kind, which are returned; none may change what it comes to."""
    script = Path(__file__).with_name("_killing.py")
    environment = {**os.environ, "PERSONALIGN_QUIET": "1"}
    done = subprocess.run([sys.executable, script, folder, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert {name: differing for name, differing in told.items() if differing} == {}, done.stderr[-3000:]
    return {name.split(" ", 1)[1] for name in told}
