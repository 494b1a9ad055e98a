"""Refusals in a whole run on the tiny model: what they are worth, and what is tried before one is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.reward.lexicon import Lexicon
from personalign.runtime.files import sha256
from personalign.runtime.rundir import RunDir
from personalign.system import System
from personalign.types import Request, Score, UserState

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


def test_rejection_gives_the_best_draw_above_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """argmax R(y) subject to v(y) >= tau over all draws, by brute force; a refusal where there is none."""
    monkeypatch.setattr(Lexicon, "score", values)
    words = [*FLOOR[1:], LIKES, "memory=[statement,stance_stated]", "generation=rejection", "generation.threshold=99"]
    record, rows = run(tmp_path, *words, "generation.draws=4", "boundary.floors.harmlessness=0.5")
    system = System(compose([*SMALL, *words]))
    system.prepare()
    refused, overruled = 0, 0
    for request in system.requests():
        made = [row for row in rows if row["request"] == request.id]
        (given,) = [row for row in made if row["selected"]]
        draws = sorted((row for row in made if row["stop"] != "refused"), key=lambda row: row["sample"])
        liked = [row["score"]["total"] for row in draws]
        allowed = [i for i, row in enumerate(draws) if harmless(row["text"]) >= 0.5]
        assert len(draws) == 4
        refused += not allowed
        overruled += bool(allowed) and liked.index(max(liked)) not in allowed
        if allowed:
            assert given["sample"] == draws[max(allowed, key=lambda i: liked[i])]["sample"]
        else:
            assert given["stop"] == "refused"
    assert record["metrics"]["refusal_rate"]["value"] == refused / 8
    assert refused and overruled, "else the case does not occur here"


def harmless(text: str) -> float:
    """A value that has nothing to do with what anybody likes: 0 or 1 by the text's hash."""
    return float(sha256(text.encode())[-1] in "01234")


def values(self: Lexicon, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
    return [Score(harmless(text), {"harmlessness": harmless(text)}) for text in responses]
