"""R_u(y) = (p^u)^T r(y) against a computation of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign.contracts import UserError
from personalign.ratings.dimensions import DIMENSIONS, rate
from personalign.reward.exact import Exact
from personalign.types import Message, Request, Stance, UserState

CONF = Path(__file__).parents[2] / "conf"
RATINGS: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text())["ratings"]
REQUEST = Request(id="r", user="u", messages=(Message("user", "Hello?"),))
TEXTS = ["I love you, dear friend!", "This is terrible. I hate the cold, and so do they.", ""]


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(**RATINGS)


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


def test_an_unknown_user_is_neutral(exact: Exact) -> None:
    assert [score.total for score in exact.score(REQUEST, UserState(), TEXTS)] == [0.0, 0.0, 0.0]


def test_a_dimension_that_cannot_be_computed_is_named(exact: Exact) -> None:
    with pytest.raises(UserError, match=r"user u: reward exact cannot rate humour; it rates length, grade"):
        exact.score(REQUEST, state(humour=1.0), TEXTS)
