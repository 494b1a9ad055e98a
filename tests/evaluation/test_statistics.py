"""The bootstrap against loops and full enumeration; comparisons and seeds against their definitions."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalign.evaluation import statistics
from personalign.evaluation.statistics import (
    Bootstrap,
    Groups,
    across_seeds,
    compare,
    estimate,
    pooled,
    resampled,
    worst_tenth,
)
from personalign.results import Figure

HOW = Bootstrap(resamples=400, level=0.9, few_users=10, seed=3)
Row = tuple[str, float, float]
USERS = np.array(["b", "a", "b", "c", "a", "b"])
VALUES = np.array([1.0, 5.0, 2.0, -4.0, 8.0, 6.0])
WEIGHTS = np.array([1.0, 2.0, 1.0, 1.0, 1.0, 2.0])


def slow_mean(users: list[str], values: list[float], weights: list[float]) -> float:
    means = []
    for name in sorted(set(users)):
        mine = [(v, w) for u, v, w in zip(users, values, weights, strict=True) if u == name and w > 0]
        if mine:
            means.append(sum(v * w for v, w in mine) / sum(w for _, w in mine))
    return sum(means) / len(means)


def test_value_is_the_mean_over_users_of_weighted_means() -> None:
    found = estimate(USERS, VALUES, WEIGHTS, HOW)
    assert found.value == pytest.approx(((5 * 2 + 8) / 3 + (1 + 2 + 6 * 2) / 4 - 4) / 3)
    assert (found.n, found.users) == (6, 3)
    assert found.low <= found.value <= found.high


row = st.tuples(st.sampled_from("abcd"), st.floats(-1e3, 1e3), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
rows = st.lists(row, min_size=1).filter(lambda items: any(weight > 0 for *_, weight in items))


@settings(max_examples=60, deadline=None)
@given(items=rows, data=st.data())
def test_value_equals_a_loop_and_nothing_depends_on_order(items: list[Row], data: st.DataObject) -> None:
    def of(listed: list[Row]) -> statistics.Estimate:
        users, values, weights = zip(*listed, strict=True)
        return estimate(np.array(users), np.array(values), np.array(weights), replace(HOW, resamples=20))

    found = of(items)
    assert found.value == pytest.approx(slow_mean(*map(list, zip(*items, strict=True))), abs=1e-9)
    assert of(data.draw(st.permutations(items))) == found


def test_user_bootstrap_equals_a_loop_over_the_same_draws() -> None:
    how = replace(HOW, few_users=3)
    groups = Groups.of(USERS, VALUES, WEIGHTS)
    drawn = np.random.default_rng(how.seed).integers(3, size=(how.resamples, 3))
    means = [6.0, 3.75, -4.0]
    expected = [sum(means[i] for i in row) / 3 for row in drawn]
    assert resampled(groups, how) == pytest.approx(expected)


@pytest.mark.parametrize("cells", [1, 50, 10**6])
def test_two_stage_bootstrap_equals_a_loop_over_the_same_draws(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CELLS", cells)
    items = {0: [(5.0, 2.0), (8.0, 1.0)], 1: [(1.0, 1.0), (2.0, 1.0), (6.0, 2.0)], 2: [(-4.0, 1.0)]}
    rng = np.random.default_rng(HOW.seed)
    drawn = rng.integers(3, size=(HOW.resamples, 3))
    expected = []
    for row in drawn:
        means = []
        for user in row:
            uniform = rng.random(3)
            chosen = [items[user][int(uniform[i] * len(items[user]))] for i in range(len(items[user]))]
            means.append(sum(v * w for v, w in chosen) / sum(w for _, w in chosen))
        expected.append(sum(means) / 3)
    assert resampled(Groups.of(USERS, VALUES, WEIGHTS), HOW) == pytest.approx(expected)


def test_intervals_approach_the_exact_bootstrap_distribution() -> None:
    values = np.array([0.0, 1.0, 5.0, 7.0])
    exact = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    how = Bootstrap(resamples=200_000, level=0.8, few_users=0, seed=0)
    found = estimate(np.arange(4), values, np.ones(4), how)
    assert [found.low, found.high] == pytest.approx(np.quantile(exact, [0.1, 0.9]), abs=0.26)
    drawn = resampled(Groups.of(np.arange(4), values, np.ones(4)), how)
    assert drawn.std() == pytest.approx(np.std(exact), rel=0.01)


def test_two_stage_variance_is_that_of_users_plus_that_of_items() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(5, 4))
    how = Bootstrap(resamples=100_000, level=0.9, few_users=6, seed=0)
    drawn = resampled(Groups.of(np.repeat(np.arange(5), 4), table.ravel(), np.ones(20)), how)
    expected = table.mean(axis=1).var() / 5 + table.var(axis=1).mean() / 4 / 5
    assert drawn.var() == pytest.approx(expected, rel=0.03)


def test_one_user_gets_an_interval_over_items_and_one_item_none() -> None:
    one = estimate(np.array(["u"] * 4), np.arange(4.0), np.ones(4), HOW)
    assert one.users == 1 and one.low < one.value < one.high
    single = estimate(np.array(["u"]), np.array([2.0]), np.ones(1), HOW)
    assert (single.low, single.value, single.high) == (2.0, 2.0, 2.0)


def test_nothing_to_average() -> None:
    found = estimate(np.array(["u"]), np.array([1.0]), np.zeros(1), HOW)
    assert (found.n, found.users) == (0, 0) and np.isnan(found.value)


def test_compare_counts_and_pairs() -> None:
    base = {("u", "1"): 0.0, ("u", "2"): 1.0, ("v", "3"): 2.0, ("v", "only base"): 9.0}
    run = {("u", "1"): 0.5, ("u", "2"): 1.1, ("v", "3"): 0.0, ("w", "only run"): 9.0}
    found = compare(run, base, tie=0.2, how=HOW)
    assert found is not None
    assert (found.win, found.tie, found.lose) == (1, 1, 1)
    assert found.by_user == {"u": (1, 1, 0), "v": (0, 0, 1)}
    assert found.difference.value == pytest.approx(((0.5 + 0.1) / 2 - 2.0) / 2)
    assert (found.difference.n, found.difference.users) == (3, 2)


def test_compare_is_antisymmetric_and_a_run_ties_with_itself() -> None:
    rng = np.random.default_rng(0)
    run = {(u, str(i)): float(rng.normal()) for u in "abc" for i in range(4)}
    base = {key: float(rng.normal()) for key in run}
    how = replace(HOW, few_users=0)
    one, other = compare(run, base, tie=0.1, how=how), compare(base, run, tie=0.1, how=how)
    assert one and other
    assert (one.win, one.tie, one.lose) == (other.lose, other.tie, other.win)
    assert one.difference.value == pytest.approx(-other.difference.value)
    same = compare(run, run, tie=0.0, how=how)
    assert same and same.tie == 12 and same.difference.low == same.difference.high == 0.0


def test_paired_interval_is_narrower_than_that_of_two_rows_apart() -> None:
    level = {u: float(i) for i, u in enumerate("abcdefgh")}
    base = {(u, "1"): level[u] for u in level}
    run = {(u, "1"): level[u] + 0.5 + 0.01 * level[u] for u in level}
    found = compare(run, base, tie=0.0, how=HOW)
    assert found and found.difference.low > 0.4
    apart = estimate(np.array(list(level)), np.array(list(level.values())), np.ones(8), HOW)
    assert apart.high - apart.low > 10 * (found.difference.high - found.difference.low)


def test_compare_of_disjoint_requests_is_none() -> None:
    assert compare({("u", "1"): 0.0}, {("u", "2"): 0.0}, tie=0.0, how=HOW) is None


def figure(value: float, half: float) -> Figure:
    return Figure(value=value, low=value - half, high=value + half, n=6, users=2, better="lower")


def test_across_seeds() -> None:
    joint = across_seeds([figure(1.0, 0.3), figure(2.0, 0.5), figure(3.0, 0.4)], 0.95)
    spread = NormalDist().inv_cdf(0.975) * 1.0 / 3**0.5
    assert joint.value == 2.0 and (joint.n, joint.users, joint.better) == (18, 2, "lower")
    assert joint.high - joint.value == pytest.approx((0.4**2 + spread**2) ** 0.5)
    assert joint.value - joint.low == pytest.approx(joint.high - joint.value)


def test_one_seed_keeps_its_figure() -> None:
    assert across_seeds([figure(1.0, 0.25)], 0.95) == figure(1.0, 0.25)


def test_statistics_do_not_import_torch() -> None:
    code = "import sys, personalign.evaluation.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("users", "worst"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (35, 3)])
def test_the_worst_tenth_is_a_loop_over_the_least_means(users: int, worst: int) -> None:
    table = np.random.default_rng(users).normal(size=(7, users))
    expected = [sum(sorted(row)[:worst]) / worst for row in table.tolist()]
    assert worst_tenth(table) == pytest.approx(expected)


def test_the_worst_tenth_of_users_with_its_interval() -> None:
    draw = np.random.default_rng(5)
    users, values = np.repeat(np.arange(30), 4), draw.normal(size=120)
    how = Bootstrap(resamples=500, level=0.9, few_users=0, seed=2)
    found = estimate(users, values, np.ones(120), how, worst_tenth)
    means = values.reshape(30, 4).mean(axis=1)
    assert found.value == pytest.approx(np.sort(means)[:3].mean())
    assert (found.n, found.users) == (120, 30) and found.low < found.value < found.high
    drawn = np.random.default_rng(2).integers(30, size=(500, 30))
    slow = [np.sort(means[row])[:3].mean() for row in drawn]
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.05, 0.95]))


def test_the_worst_of_few_users_is_redrawn_in_two_stages() -> None:
    items = np.array([[0.0, 2.0], [5.0, 5.0]])
    how = Bootstrap(resamples=20_000, level=0.9, few_users=10, seed=0)
    drawn = resampled(Groups.of(np.repeat([0, 1], 2), items.ravel(), np.ones(4)), how, worst_tenth)
    # Neither user drawn is the worst one with probability 1/4; else the least mean of one or of two redraws of it.
    one, two = np.array([1, 2, 1]) / 4, np.array([7, 8, 1]) / 16
    expected = {value: one[i] / 2 + two[i] / 4 for i, value in enumerate((0.0, 1.0, 2.0))} | {5.0: 0.25}
    shares = {value: float((drawn == value).mean()) for value in expected}
    assert shares == pytest.approx(expected, abs=0.015)


def share(sums: statistics.Floats) -> statistics.Floats:
    """(sum of the first number) / (sum of the second)."""
    return sums[..., 0] / sums[..., 1]  # type: ignore[no-any-return]


def test_pooled_is_the_measure_of_sums_and_counts_users_and_items() -> None:
    rows = np.stack([VALUES, WEIGHTS], axis=1)
    found = pooled(USERS, rows, share, HOW)
    assert found.value == pytest.approx(VALUES.sum() / WEIGHTS.sum())
    assert (found.n, found.users) == (6, 3) and found.low < found.value < found.high
    order = np.array([3, 5, 0, 1, 4, 2])
    assert pooled(USERS[order], rows[order], share, HOW) == found
    nothing = pooled(USERS[:0], rows[:0], share, HOW)
    assert nothing.n == nothing.users == 0 and np.isnan(nothing.value)


@pytest.mark.parametrize("few", [0, 1000])
def test_pooled_interval_is_that_of_means_where_users_have_one_item_each(few: int) -> None:
    """Then the pooled share is the mean over users, and redrawing the one item of a user changes nothing."""
    rng = np.random.default_rng(1)
    users, values = np.arange(150.0), rng.normal(size=150)
    how = replace(HOW, resamples=20_000, few_users=few)
    ours = pooled(users, np.stack([values, np.ones(150)], axis=1), share, how)
    theirs = estimate(users, values, np.ones(150), how)
    assert ours[:3] == pytest.approx(theirs[:3], abs=0.01)


def test_pooled_redraws_whole_users_and_items_where_users_are_few() -> None:
    users = np.repeat([0.0, 1.0], 50)
    rows = np.stack([np.tile([0.0, 1.0], 50), np.ones(100)], axis=1)
    whole = pooled(users, rows, share, replace(HOW, few_users=0))
    assert whole.low == whole.value == whole.high == 0.5, "both users are alike"
    within = pooled(users, rows, share, replace(HOW, resamples=20_000, few_users=3))
    # Given how often each user is drawn, 100 items are redrawn with chance one half each.
    half = NormalDist().inv_cdf(0.95) * 0.05
    assert (within.low, within.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
