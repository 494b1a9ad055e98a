"""Laplace's posterior against brute force: nested searches for the mode, differences of the loss for the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.memory.logistic import laplace

Row = tuple[float, float]
ROW = st.tuples(st.floats(-6, 6), st.floats(-6, 6), st.floats(0, 1))
GOLDEN = (math.sqrt(5) - 1) / 2


def loss(rows: Sequence[Row], weights: Sequence[float], scale: float, w: Row) -> float:
    """The negative log posterior up to a constant, one event at a time, without numpy."""
    total = (w[0] ** 2 + w[1] ** 2) / (2 * scale**2)
    for row, weight in zip(rows, weights, strict=True):
        z = row[0] * w[0] + row[1] * w[1]
        total += weight * (max(0.0, -z) + math.log1p(math.exp(-abs(z))))
    return total


def lowest(f: Callable[[float], float], reach: float) -> float:
    """Where a convex function is lowest within +-reach, by golden section."""
    low, high = -reach, reach
    while high - low > 1e-9:
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, b) if f(a) < f(b) else (a, high)
    return (low + high) / 2


@settings(deadline=None, max_examples=25)
@given(st.lists(ROW, max_size=4), st.sampled_from([0.3, 1.0, 3.0]))
def test_the_mode_is_where_the_posterior_is_highest(events: list[tuple[float, float, float]], scale: float) -> None:
    rows, weights = [e[:2] for e in events], [e[2] for e in events]
    mean, covariance = laplace(np.array(rows).reshape(-1, 2), np.array(weights), scale)
    # At the mode the loss is at most that of w = 0, which is log 2 for each event.
    reach = scale * math.sqrt(2 * len(rows) * math.log(2)) + 1e-6

    def second(a: float) -> float:
        return lowest(lambda b: loss(rows, weights, scale, (a, b)), reach)

    first = lowest(lambda a: loss(rows, weights, scale, (a, second(a))), reach)
    # The loss is known to about 1e-15 of its 3 nats, and rises by at least w^2 / (2 scale^2): hence about 1e-7 of w.
    assert mean == pytest.approx([first, second(first)], abs=2e-6)
    assert np.linalg.inv(covariance) == pytest.approx(hessian(rows, weights, scale, (mean[0], mean[1])), abs=1e-3)


def hessian(rows: Sequence[Row], weights: Sequence[float], scale: float, at: Row, h: float = 1e-4) -> np.ndarray:
    """Second differences of the loss; off by h^2 |x|^4 / 8 an event, 1e-5 here, and by rounding, 1e-15 / h^2."""

    def shifted(i: int, j: int, s: float, t: float) -> float:
        step = [s * h * (k == i) + t * h * (k == j) for k in (0, 1)]
        return loss(rows, weights, scale, (at[0] + step[0], at[1] + step[1]))

    return np.array(
        [
            [sum(s * t * shifted(i, j, s, t) for s in (-1, 1) for t in (-1, 1)) / (4 * h * h) for j in (0, 1)]
            for i in (0, 1)
        ]
    )


def test_without_events_the_posterior_is_the_prior() -> None:
    mean, covariance = laplace(np.zeros((0, 3)), np.zeros(0), 2.0)
    assert mean.tolist() == [0.0, 0.0, 0.0]
    assert covariance == pytest.approx(4.0 * np.eye(3))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_it_converges_where_choices_are_separable_and_far_apart(scale: float, size: float) -> None:
    """One event: w / s^2 = x sigma(-w x), which bisection solves in the log odds z = w x."""
    mean, covariance = laplace(np.array([[size]]), np.ones(1), scale)
    low, high = 0.0, (scale * size) ** 2
    for _ in range(200):
        z = (low + high) / 2
        low, high = (z, high) if z < (scale * size) ** 2 / (1 + math.exp(min(z, 700.0))) else (low, z)
    odds = math.exp(-min(z, 700.0))
    variance = 1 / (scale**-2 + size**2 * odds / (1 + odds) ** 2)
    assert mean[0] == pytest.approx(z / size, abs=1e-6 * math.sqrt(variance))
    assert covariance[0, 0] == pytest.approx(variance, rel=1e-3)
