"""From samples to the answer that is given: best-of-n and floors with made-up rewards, on the tiny model."""

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


def value(text: str) -> float:
    return float(zlib.crc32(text.encode("utf-8", "replace")) % 7)


class MadeUp(Reward):
    """The guide of these tests, and the scorer of a value that is there or not, whatever the guide thinks."""

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return [Score(taste(request.id, text), {"harmlessness": value(text)}) for text in responses]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = System.prepare

    def guided(self: System) -> None:
        self.guide = MadeUp()
        self.universal = MadeUp() if self.universal is not None else None
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
    for row in sorted(lines[0], key=lambda row: row["sample"]):  # the given one is written last
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


@pytest.mark.parametrize("n", [1, 2])
def test_rejection_draws_until_the_guide_is_content_and_gives_the_best_so_far(tmp_path: Path, n: int) -> None:
    """By the guide's scores of the draws, which a record keeps; each of n samples draws for itself."""
    words = ["memory=statement", "generation=rejection", f"sampling.n={n}"]
    values = ["generation.threshold=700", "generation.draws=3"]
    samples, given, _ = answered(tmp_path, *words, *values)
    stopped = 0
    for row in given:
        made = samples[row["request"]]
        totals = [taste(row["request"], one["text"]) for one in made]
        assert [one["score"]["total"] for one in made] == totals
        assert totals[row["sample"]] == max(totals)
        if n == 1:
            enough = [i for i, total in enumerate(totals) if total >= 700]
            assert len(made) == (enough[0] + 1 if enough else 3)
            stopped += bool(enough) and len(made) < 3
        else:
            assert sum(one["final"] for one in made) == 2
    assert stopped or n == 2, "the threshold had something to say"


def test_rejection_without_a_threshold_is_best_of_n(tmp_path: Path) -> None:
    """The draws are the very samples of best-of-n, and so is the answer."""
    never = ["generation=rejection", "generation.threshold=inf", "generation.draws=3"]
    found = [
        {row["request"]: row["text"] for row in answered(tmp_path, "memory=statement", *words)[1]}
        for words in (never, ["generation=best_of_n_preference", "sampling.n=3"])
    ]
    assert found[0] == found[1] and len(found[0]) == 9


def test_what_the_guide_is_not_asked_is_not_scored(tmp_path: Path) -> None:
    samples, _, _ = answered(tmp_path, "generation=best_of_n", "sampling.n=2")
    assert {one["score"] for made in samples.values() for one in made} == {None}


def test_without_a_guide_there_is_no_best() -> None:
    from personalign.contracts import UserError

    with pytest.raises(UserError, match=r"generation=best_of_n needs reward\.guide: use reward@guide="):
        compose(["generation=best_of_n", "reward@guide=none", "reward@truth=classifier", "truth.name=x"])


FLOORED = ("generation=best_of_n", "sampling.n=4")


def floor(tau: float) -> str:
    return f"evaluation.floors.harmlessness={tau}"


def test_a_floor_by_brute_force(tmp_path: Path) -> None:
    """Of the samples at or above the floor the one that the guide likes best; figures by their definitions."""
    samples, given, record = answered(tmp_path, *FLOORED, "boundary=floor", floor(4.0))
    refused, free = 0, 0
    for row in given:
        made = [one for one in samples[row["request"]] if one["stop"] != "refused"]
        assert len(made) == 4, "refusing loses no sample"
        able = [one for one in made if value(one["text"]) >= 4.0]
        free += len(able) == 4
        if able:
            best = max(taste(row["request"], one["text"]) for one in able)
            assert taste(row["request"], row["text"]) == best and row["universal"]["harmlessness"] >= 4.0
        else:
            refused += 1
            assert (row["text"], row["stop"], row["tokens"]) == ("", "refused", [])
    figures = record["metrics"]
    assert figures["violation_rate"]["value"] == 0.0
    assert figures["refusal_rate"]["value"] == pytest.approx(refused / 9)
    assert free < 9, "the floor had something to say"


def test_a_floor_that_nothing_meets_refuses(tmp_path: Path) -> None:
    samples, given, record = answered(tmp_path, *FLOORED, "boundary=floor", floor(7.0))
    assert [row["stop"] for row in given] == ["refused"] * 9 and all(len(rows) == 5 for rows in samples.values())
    assert record["metrics"]["refusal_rate"]["value"] == 1.0
    assert "perplexity" not in record["metrics"]


def test_no_floor_changes_nothing(tmp_path: Path) -> None:
    """tau = -inf admits all, and a run without the boundary is measured by the same floors."""
    _, bounded, _ = answered(tmp_path, *FLOORED, "boundary=floor", "boundary.floors.harmlessness=-inf", floor(4.0))
    samples, free, record = answered(tmp_path, *FLOORED, floor(4.0))
    assert [row["text"] for row in bounded] == [row["text"] for row in free]
    broken = [value(row["text"]) < 4.0 for row in free]
    assert record["metrics"]["violation_rate"]["value"] == pytest.approx(sum(broken) / 9) and any(broken)
    assert all(len(rows) == 4 for rows in samples.values())


def test_the_tax_is_the_true_reward_that_was_given_up(tmp_path: Path) -> None:
    from personalign.composition.build import build

    samples, given, record = answered(tmp_path, *FLOORED, "boundary=floor", floor(4.0))
    truth = build(record["config"]["truth"])

    def reward(user: str, text: str) -> float:
        stance = record["users"][user]["stance"]
        return float(sum(p * truth.ratings(text)[d] for d, p in stance.items()))

    taxes: dict[str, list[float]] = {}
    for row in given:
        made = [one["text"] for one in samples[row["request"]] if one["stop"] != "refused"]
        rewards = [reward(row["user"], text) for text in made]
        got = min(rewards) if row["stop"] == "refused" else reward(row["user"], row["text"])
        taxes.setdefault(row["user"], []).append(max(rewards) - got)
    mean = sum(sum(of) / len(of) for of in taxes.values()) / len(taxes)
    assert record["metrics"]["personalization_tax"]["value"] == pytest.approx(mean, abs=1e-9) and mean > 0
    without = answered(tmp_path, "generation=best_of_n", "sampling.n=4", "reward@universal=none")[2]["metrics"]
    assert not without.keys() & {"violation_rate", "personalization_tax"}, "nothing scores universal values"
