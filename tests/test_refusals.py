"""Refusals in a whole run on the tiny model: what they are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.runtime.rundir import RunDir
from personalign.system import System

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=8",
    "sampling.temperature=1.0",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "evaluation.resamples=20",
]
LIKES = "data.active=[length,structure,formality]"  # which tell random bytes apart
FLOOR = ["memory=stance_stated", "reward@guide=exact", "reward@universal=lexicon", "boundary=floor"]


def run(folder: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run, and the rows of all that it made."""
    record = Experiment(compose([*SMALL, *more, f"paths.runs={folder}"])).run()
    return record, list(RunDir(folder, record["identity"]).responses())


def test_who_likes_brevity_is_not_served_best_by_silence(tmp_path: Path) -> None:
    """No word list rates above 0, and all is refused: there is no reward, and the tax is what the samples span."""
    words = [*FLOOR, LIKES, "generation=best_of_n", "sampling.n=3", "boundary.floors.harmlessness=1"]
    record, rows = run(tmp_path, *words)
    metrics = record["metrics"]
    assert metrics["refusal_rate"]["value"] == 1.0 and metrics["violation_rate"]["value"] == 0.0
    assert not [name for name in metrics if name.startswith("reward") or name == "hypervolume"]
    answers = [json.loads(line) for line in (tmp_path / record["identity"] / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 8 and all(one["truth"] is None and one["stop"] == "refused" for one in answers)

    system = System(compose([*SMALL, *words]))
    system.prepare()
    spans: dict[str, list[float]] = {}
    for request in system.requests():
        made = [row["text"] for row in rows if row["request"] == request.id and row["stop"] != "refused"]
        state = system.true_state(request)
        assert system.truth is not None and state is not None and len(made) == 3
        totals = [score.total for score in system.truth.score(request, state, made)]
        spans.setdefault(request.user, []).append(max(totals) - min(totals))
    expected = sum(sum(some) / len(some) for some in spans.values()) / len(spans)
    assert metrics["personalization_tax"]["value"] == pytest.approx(expected) and expected > 0
