"""From samples to the answer that is given: best-of-n with a made-up reward, on the tiny model."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from personalign import Experiment, compose
from personalign.contracts import Reward
from personalign.system import System
from personalign.types import Request, Score, UserState

SMALL = [
    "model=tiny",
    "precision=fp32",
    "sampling.max_new_tokens=6",
    "sampling.temperature=1.0",
    "requests.limit=3",
    "requests.pairs=1",
    "data.users=3",
    "data.pool=shipped",
    "decoding.batch_size=8",
]
Rows = list[dict[str, Any]]


def taste(request: str, text: str) -> float:
    """Made up, and without any order that samples could have."""
    return float(zlib.crc32(f"{request}|{text}".encode()) % 1000)


class MadeUp(Reward):
    """The guide of these tests."""

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return [Score(taste(request.id, text)) for text in responses]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = System.prepare

    def guided(self: System) -> None:
        self.guide = MadeUp()
        prepare(self)

    monkeypatch.setattr(System, "prepare", guided)


def answered(folder: Path, *words: str) -> tuple[dict[str, Rows], Rows, dict[str, Any]]:
    """All samples by request, the given answers as they were measured, and the record."""
    record = Experiment(compose([*SMALL, f"paths.runs={folder}", *words])).run()
    lines = [
        [json.loads(line) for line in (folder / record["identity"] / name).read_text().splitlines()]
        for name in ("samples-0.jsonl", "answers.jsonl")
    ]
    samples: dict[str, Rows] = {}
    for row in lines[0]:
        samples.setdefault(row["request"], []).append(row)
    return samples, lines[1], record


def test_best_of_n_by_brute_force_and_more_samples_never_lose(tmp_path: Path) -> None:
    before: dict[str, Rows] = {}
    for n in (1, 2, 5):
        samples, given, record = answered(tmp_path, "generation=best_of_n", f"sampling.n={n}")
        assert len(given) == 9 and all(len(rows) == n for rows in samples.values())
        for row in given:
            made = samples[row["request"]]
            best = max(taste(row["request"], one["text"]) for one in made)
            assert taste(row["request"], row["text"]) == best
            earlier = before.get(row["request"], [])
            assert [one["text"] for one in made[: len(earlier)]] == [one["text"] for one in earlier], "nested"
            assert all(best >= taste(row["request"], one["text"]) for one in earlier)
            assert row["cost"]["forward_tokens"] == sum(one["cost"]["forward_tokens"] for one in made)
        before = samples
        assert record["cost"]["forward_tokens"] == sum(row["cost"]["forward_tokens"] for row in given)
        assert record["flags"] == []
    assert len({row["sample"] for row in given}) > 1, "the guide had something to say"


def test_best_of_one_is_its_prompt_s_own_answer(tmp_path: Path) -> None:
    for one, other in (("best_of_n", "plain"), ("best_of_n_preference", "preference_prompt")):
        texts = [
            {row["request"]: row["text"] for row in answered(tmp_path, "memory=statement", f"generation={name}")[1]}
            for name in (one, other)
        ]
        assert texts[0] == texts[1]


def test_without_a_guide_there_is_no_best() -> None:
    from personalign.contracts import UserError

    with pytest.raises(UserError, match=r"generation=best_of_n needs reward\.guide: use reward@guide="):
        compose(["generation=best_of_n", "reward@guide=none", "reward@truth=classifier", "truth.name=x"])
