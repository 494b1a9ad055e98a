"""The hypervolume against hand, inclusion and exclusion, and chance; the front's figure against a loop."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.evaluation.pareto import front, hypervolume
from personalign.evaluation.statistics import Bootstrap, Floats

HOW = Bootstrap(resamples=300, level=0.9, few_users=20, seed=4)


@pytest.mark.parametrize(
    ("points", "corner", "volume"),
    [
        ([[3.0]], 0.0, 3.0),
        ([[2.0, 3.0]], 0.0, 6.0),
        ([[2.0, 3.0]], -1.0, 12.0),
        # Two steps of a stair, and a point below it.
        ([[1.0, 3.0], [3.0, 1.0], [0.5, 0.5]], 0.0, 5.0),
        # Beyond the corner in one dimension: it dominates nothing above it.
        ([[5.0, -1.0], [1.0, 1.0]], 0.0, 1.0),
        ([[2.0, 2.0, 1.0], [1.0, 1.0, 3.0]], 0.0, 6.0),
        ([[1.0, 1.0], [1.0, 1.0]], 0.0, 1.0),
    ],
)
def test_by_hand(points, corner, volume):
    assert hypervolume(np.array(points), corner) == pytest.approx(volume)


def test_no_points_have_no_volume():
    assert hypervolume(np.zeros((0, 3)), 0.0) == 0.0


def unions(points: Floats) -> float:
    """Inclusion and exclusion over all sets of boxes."""
    sets = itertools.chain.from_iterable(itertools.combinations(points, k + 1) for k in range(len(points)))
    return float(sum((-1) ** (len(some) + 1) * np.min(some, axis=0).clip(min=0.0).prod() for some in sets))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_it_is_the_volume_of_the_union_of_boxes(seed: int, count: int, dimensions: int, ties: bool):
    points = np.random.default_rng(seed).normal(size=(count, dimensions)) + 0.5
    points = points.round() if ties else points
    assert hypervolume(points, 0.0) == pytest.approx(unions(points), abs=1e-9)
    assert hypervolume(points - 2.0, -2.0) == pytest.approx(unions(points), abs=1e-9)


def test_it_is_the_share_of_a_box_that_is_dominated():
    rng = np.random.default_rng(0)
    points = rng.random((12, 3))
    darts = rng.random((200_000, 3))
    dominated = np.zeros(len(darts), dtype=bool)
    for point in points:
        dominated |= (darts <= point).all(axis=1)
    assert hypervolume(points, 0.0) == pytest.approx(dominated.mean(), abs=0.004)


def test_the_front_of_users_with_its_interval():
    rng = np.random.default_rng(1)
    users = ["a", "b", "c"] * 5
    ratings = rng.normal(size=(15, 2)) + np.tile([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]], (5, 1))
    found = front(users, ratings, -1.0, HOW)
    means = np.array([np.mean([r for u, r in zip(users, ratings, strict=True) if u == name], axis=0) for name in "abc"])
    assert found.value == pytest.approx(unions(means + 1.0))
    assert (found.n, found.users) == (15, 3) and found.low < found.value < found.high
    order = rng.permutation(15)
    assert front([users[i] for i in order], ratings[order], -1.0, HOW) == found


def test_the_interval_lies_around_the_value_where_chance_pushes_the_redrawn_fronts_outwards():
    """Users of one and the same mean: every redrawn front is beyond theirs, and its spread is that of a loop."""
    items = np.array([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    users = [name for name in "abcdef" for _ in items]
    found = front(users, np.tile(items, (6, 1)), -2.0, replace(HOW, resamples=4000))
    rng = np.random.default_rng(9)
    slow = [unions(items[rng.integers(3, size=(6, 3))].mean(axis=1) + 2.0) for _ in range(4000)]
    assert found.value == pytest.approx(4.0) and np.quantile(slow, 0.05) > 4.0
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(np.subtract(*np.quantile(slow, [0.95, 0.05])), abs=0.15)


def test_an_item_a_user_leaves_no_chance_and_no_item_no_figure():
    found = front(["a", "b"], np.array([[1.0, 3.0], [3.0, 1.0]]), 0.0, HOW)
    assert (found.low, found.value, found.high) == pytest.approx((5.0, 5.0, 5.0))
    assert front([], np.zeros((0, 2)), 0.0, HOW).n == 0
