"""R_u(y) = (p^u)^T r(y) against a computation of its own, and the scales against the pool that ships."""

from __future__ import annotations

import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, read_pool
from personalign.ratings.dimensions import DIMENSIONS, rate
from personalign.reward.exact import Exact
from personalign.types import Message, Request, Stance, UserState

CONF = Path(__file__).parents[2] / "conf"
RATINGS: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text())["ratings"]
REQUEST = Request(id="r", user="u", messages=(Message("user", "Hello?"),))
TEXTS = ["I love you, dear friend!", "This is terrible. I hate the cold, and so do they.", ""]


def values(path: str) -> dict[str, Any]:
    return {k: v for k, v in yaml.safe_load((CONF / path).read_text()).items() if k != "_target_"}


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(**RATINGS)


@pytest.fixture(scope="module")
def ratings() -> list[dict[str, float]]:
    return [rate(text) for texts in read_pool(SHIPPED).answers.values() for text in texts]


def state(**stance: float) -> UserState:
    return UserState(stance=Stance.of(stance))


def test_the_total_is_the_dot_product() -> None:
    zero, one = dict.fromkeys(DIMENSIONS, 0.0), dict.fromkeys(DIMENSIONS, 2.0)
    reward = Exact(center=zero, scale=one, clip=None)
    scores = reward.score(REQUEST, state(warmth=-0.5, grade=0.25), TEXTS[:2])
    for score, text in zip(scores, TEXTS, strict=False):
        raw = rate(text)
        assert score.total == pytest.approx((-0.5 * raw["warmth"] + 0.25 * raw["grade"]) / 2)
        assert score.dimensions == pytest.approx({name: raw[name] / 2 for name in DIMENSIONS})


def test_opposite_users_have_opposite_rewards(exact: Exact) -> None:
    up = exact.score(REQUEST, state(warmth=0.8, formality=-0.6), TEXTS)
    down = exact.score(REQUEST, state(warmth=-0.8, formality=0.6), TEXTS)
    assert [a.total for a in up] == pytest.approx([-b.total for b in down])
    assert up[0].total > up[1].total


def test_no_text_wins_by_an_outlier(exact: Exact) -> None:
    absurd = "happy! " * 5000
    assert all(abs(value) <= 3.0 for value in exact.ratings(absurd).values())
    free = Exact(**{**RATINGS, "clip": None})
    assert free.ratings(absurd)["length"] > 3.0


def test_silence_is_neutral_but_short(exact: Exact) -> None:
    ratings = exact.ratings("")
    assert ratings.pop("length") == -3.0
    assert set(ratings.values()) == {0.0}


def test_an_unknown_user_is_neutral(exact: Exact) -> None:
    assert [score.total for score in exact.score(REQUEST, UserState(), TEXTS)] == [0.0, 0.0, 0.0]


def test_a_dimension_that_cannot_be_computed_is_named(exact: Exact) -> None:
    with pytest.raises(UserError, match=r"user u: reward exact cannot rate humour; it rates length, grade"):
        exact.score(REQUEST, state(humour=1.0), TEXTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": {"warmth": 0.0}}, "center: length is missing"),
        ({"scale": {**dict.fromkeys(DIMENSIONS, 1.0), "wit": 1.0}}, "scale: there is no dimension wit"),
        ({"scale": {**dict.fromkeys(DIMENSIONS, 1.0), "warmth": 0.0}}, "scale of warmth must be above 0"),
    ],
)
def test_wrong_scales_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Exact(**{**RATINGS, **change})


def test_the_scales_are_those_of_the_shipped_pool(ratings: list[dict[str, float]]) -> None:
    conf = RATINGS
    assert list(conf["center"]) == list(conf["scale"]) == list(DIMENSIONS)
    for name in DIMENSIONS:
        column = [rating[name] for rating in ratings]
        assert conf["center"][name] == pytest.approx(statistics.fmean(column), abs=1e-3)
        assert conf["scale"][name] == pytest.approx(statistics.pstdev(column), abs=1e-3)


def test_the_active_dimensions_vary_and_are_nearly_uncorrelated(ratings: list[dict[str, float]]) -> None:
    active = values("data/exact_users.yaml")["active"]
    columns = {name: [rating[name] for rating in ratings] for name in active}
    for one, two in combinations(active, 2):
        assert abs(statistics.correlation(columns[one], columns[two])) < 0.3
    for column in columns.values():
        assert len(set(column)) > len(column) / 2
