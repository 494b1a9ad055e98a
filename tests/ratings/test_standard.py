"""Ratings in standard units: what no text may do to them, and the scales against the pool that ships."""

from __future__ import annotations

import math
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, read_pool
from personalign.ratings.dimensions import DIMENSIONS, rate
from personalign.ratings.standard import Ratings

CONF = Path(__file__).parents[2] / "conf"
RATINGS: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text())["ratings"]


@pytest.fixture(scope="module")
def standard() -> Ratings:
    return Ratings(**RATINGS)


@pytest.fixture(scope="module")
def ratings() -> list[dict[str, float]]:
    return [rate(text) for texts in read_pool(SHIPPED).answers.values() for text in texts]


def test_no_text_wins_by_an_outlier(standard: Ratings) -> None:
    absurd = "happy! " * 5000
    assert all(abs(value) <= 3.0 for value in standard(absurd).values())
    free = Ratings(**{**RATINGS, "clip": None})
    assert free(absurd)["length"] > 3.0


def test_silence_is_neutral_but_short(standard: Ratings) -> None:
    found = standard("")
    assert found.pop("length") == -3.0
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": {"warmth": 0.0}}, "center: length is missing"),
        ({"scale": {**dict.fromkeys(DIMENSIONS, 1.0), "wit": 1.0}}, "scale: there is no dimension wit"),
        ({"scale": {**dict.fromkeys(DIMENSIONS, 1.0), "warmth": 0.0}}, "scale of warmth must be above 0"),
        (
            {"scale": {**dict.fromkeys(DIMENSIONS, 1.0), "warmth": math.inf}},
            "scale of warmth must be above 0 and finite",
        ),
        ({"center": {**dict.fromkeys(DIMENSIONS, 0.0), "warmth": math.nan}}, "center of warmth must be finite"),
    ],
)
def test_wrong_scales_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Ratings(**{**RATINGS, **change})


def test_the_scales_are_those_of_the_shipped_pool(ratings: list[dict[str, float]]) -> None:
    assert list(RATINGS["center"]) == list(RATINGS["scale"]) == list(DIMENSIONS)
    for name in DIMENSIONS:
        column = [rating[name] for rating in ratings]
        assert RATINGS["center"][name] == pytest.approx(statistics.fmean(column), abs=1e-3)
        assert RATINGS["scale"][name] == pytest.approx(statistics.pstdev(column), abs=1e-3)


def test_the_active_dimensions_vary_and_are_nearly_uncorrelated(ratings: list[dict[str, float]]) -> None:
    active = yaml.safe_load((CONF / "data/exact_users.yaml").read_text())["active"]
    columns = {name: [rating[name] for rating in ratings] for name in active}
    for one, two in combinations(active, 2):
        assert abs(statistics.correlation(columns[one], columns[two])) < 0.3
    for column in columns.values():
        assert len(set(column)) > len(column) / 2
