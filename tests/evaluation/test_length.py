"""Length control against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from personalign.evaluation.length import LengthControl
from personalign.results import Calibration


def points(user: str, lengths: list[int], slope: float, level: float) -> list[Calibration]:
    return [Calibration(user=user, words=w, reward=level + slope * math.log1p(w)) for w in lengths]


def test_exact_lines_are_levelled_per_user() -> None:
    data = points("u", [10, 20, 40], 2.0, 0.0) + points("v", [5, 50], -1.0, 7.0)
    control = LengthControl.fit(data, shrinkage=0.0)
    assert control is not None
    middle = np.mean([math.log1p(w) for w in (10, 20, 40)])
    for words in (0, 3, 400):
        assert control.adjusted("u", words, 2.0 * math.log1p(words)) == pytest.approx(2.0 * middle)
    assert control.slopes == pytest.approx({"u": 2.0, "v": -1.0})


def test_slope_equals_numpy_least_squares() -> None:
    rng = np.random.default_rng(0)
    words, rewards = rng.integers(1, 200, 30), rng.normal(size=30)
    data = [Calibration(user="u", words=int(w), reward=float(r)) for w, r in zip(words, rewards, strict=True)]
    control = LengthControl.fit(data, shrinkage=0.0)
    assert control and control.slopes["u"] == pytest.approx(np.polyfit(np.log1p(words), rewards, 1)[0])


def test_shrinkage_is_the_closed_form() -> None:
    data = points("u", [10, 20, 40], 2.0, 0.0) + points("v", [5, 50], -1.0, 7.0)
    x = {"u": np.log1p([10, 20, 40]), "v": np.log1p([5, 50])}
    sxx = {user: float(((values - values.mean()) ** 2).sum()) for user, values in x.items()}
    pooled = (2.0 * sxx["u"] - 1.0 * sxx["v"]) / (sxx["u"] + sxx["v"])
    prior = 4.0 * (sxx["u"] + sxx["v"]) / 5
    control = LengthControl.fit(data, shrinkage=4.0)
    assert control is not None and control.slope == pytest.approx(pooled)
    assert control.slopes["u"] == pytest.approx((2.0 * sxx["u"] + prior * pooled) / (sxx["u"] + prior))
    wide = LengthControl.fit(data, shrinkage=1e9)
    assert wide and wide.slopes["v"] == pytest.approx(pooled)


def test_users_that_say_nothing_of_the_slope_get_the_pooled_one() -> None:
    data = [*points("u", [10, 20, 40], 2.0, 0.0), Calibration(user="same", words=7, reward=1.0)]
    data.append(Calibration(user="same", words=7, reward=3.0))
    control = LengthControl.fit(data, shrinkage=0.0)
    assert control is not None
    assert control.adjusted("same", 7, 1.5) == pytest.approx(1.5)
    expected = 1.5 - 2.0 * (math.log1p(9) - math.log1p(7))
    assert control.adjusted("same", 9, 1.5) == pytest.approx(expected)
    overall = np.mean([math.log1p(p.words) for p in data])
    assert control.adjusted("unknown", 9, 1.5) == pytest.approx(1.5 - 2.0 * (math.log1p(9) - overall))


def test_no_slope_without_two_lengths() -> None:
    assert LengthControl.fit([], 1.0) is None
    assert LengthControl.fit([Calibration(user=u, words=12, reward=1.0) for u in "aabbcc"], 1.0) is None
