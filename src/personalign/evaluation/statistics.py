"""Means over users with bootstrap intervals by user, and paired comparisons. NumPy alone.

Answers of one user are alike, so users are the unit: every value is the mean over users of the user's own
(weighted) mean, and an interval is a percentile interval of that value over resampled users. With fewer than
`few_users` users, the items of each drawn user are resampled as well (the two-stage cluster bootstrap), since
so few can hardly show how much chance there is in each of them. One user alone: the interval is over items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalign.results import Figure

Floats = NDArray[np.float64]
Better = Literal["higher", "lower", "none"]
Key = tuple[str, ...]
Over = Callable[[Floats], Floats]
CELLS = 2_000_000


def average(means: Floats) -> Floats:
    """The mean over users, the last axis."""
    mean: Floats = means.mean(axis=-1)
    return mean


def worst_tenth(means: Floats) -> Floats:
    """The mean over the tenth of users with the least means, at least one of them; users are the last axis."""
    count = max(1, means.shape[-1] // 10)
    worst: Floats = np.partition(means, count - 1, axis=-1)[..., :count].mean(axis=-1)
    return worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are drawn: how often, how wide, below how many users items are redrawn, the seed."""

    resamples: int
    level: float
    few_users: int
    seed: int


class Estimate(NamedTuple):
    """A value with its interval; NaN with n = 0 where there is nothing to average."""

    value: float
    low: float
    high: float
    n: int
    users: int

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """The estimate on another scale; `function` must be increasing."""
        return self._replace(value=function(self.value), low=function(self.low), high=function(self.high))

    def figure(self, better: Better) -> Figure:
        return Figure(**self._asdict(), better=better)


@dataclass(frozen=True, slots=True)
class Groups:
    """Items grouped by user: values and weights (users, longest), padded with weight 0; counts (users,)."""

    values: Floats
    weights: Floats
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, users: NDArray[Any], values: Floats, weights: Floats) -> Groups:
        """Group 1-D arrays. Items are put in a canonical order: no result depends on the order of arrival."""
        kept = weights > 0
        users, values, weights = users[kept], values[kept], weights[kept]
        order = np.lexsort((weights, values, users))
        _, rows, counts = np.unique(users[order], return_inverse=True, return_counts=True)
        columns = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        padded = np.zeros((2, len(counts), counts.max(initial=0)))
        padded[0, rows, columns], padded[1, rows, columns] = values[order], weights[order]
        return cls(padded[0], padded[1], counts)

    def means(self) -> Floats:
        """Each user's weighted mean (users,)."""
        return weighted_mean(self.values, self.weights)


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """The weighted mean over the last axis."""
    mean: Floats = (values * weights).sum(-1) / weights.sum(-1)
    return mean


def resampled(groups: Groups, how: Bootstrap, over: Over = average) -> Floats:
    """The bootstrap's values (resamples,): `over` drawn users' (redrawn) means."""
    rng = np.random.default_rng(how.seed)
    users = len(groups.counts)
    drawn = rng.integers(users, size=(how.resamples, users))
    if users >= how.few_users:
        return over(groups.means()[drawn])
    step = max(1, CELLS // max(1, groups.values.size))
    return np.concatenate([over(_two_stage(groups, drawn[i : i + step], rng)) for i in range(0, len(drawn), step)])


def _two_stage(groups: Groups, drawn: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """The drawn users' means (resamples, users) over redrawn items."""
    counts = groups.counts[drawn][..., None]
    longest = groups.values.shape[1]
    items = (rng.random((*drawn.shape, longest)) * counts).astype(np.int64)
    used = np.arange(longest) < counts
    rows = drawn[..., None]
    return weighted_mean(groups.values[rows, items], groups.weights[rows, items] * used)


def estimate(users: NDArray[Any], values: Floats, weights: Floats, how: Bootstrap, over: Over = average) -> Estimate:
    """The mean over users of their weighted means (or what else `over` makes of them), with its percentile interval.

    `users` (n,) holds any sortable keys. Items of weight 0 are left out, and so is a user with no other item.
    """
    groups = Groups.of(users, values, weights)
    if not len(groups.counts):
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    tail = (1.0 - how.level) / 2.0
    low, high = np.quantile(resampled(groups, how, over), [tail, 1.0 - tail])
    n, count = int(groups.counts.sum()), len(groups.counts)
    return Estimate(float(over(groups.means())), float(low), float(high), n, count)


def pooled(users: NDArray[Any], rows: Floats, measure: Callable[[Floats], Floats], how: Bootstrap) -> Estimate:
    """A measure of sums over all items, such as BLEU, with its percentile interval over users.

    `rows` (n, parts) are what the items add to the sums, and `measure` takes sums (..., parts) to values (...). Here
    items count alike, whoever they are of. Users are redrawn as everywhere: with all of their items, or, where there
    are fewer than `few_users`, with their items redrawn too.
    """
    if not len(users):
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    order = np.lexsort((*rows.T, users))
    rows = rows[order]
    _, starts, counts = np.unique(users[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(how.seed)
    times = rng.multinomial(len(counts), np.full(len(counts), 1.0 / len(counts)), size=how.resamples)
    sums: Floats
    if len(counts) >= how.few_users:
        sums = times.astype(np.float64) @ np.add.reduceat(rows, starts)
    else:
        drawn = [rng.multinomial(t * n, np.full(n, 1.0 / n)) for t, n in zip(times.T, counts, strict=True)]
        sums = np.concatenate(drawn, axis=1).astype(np.float64) @ rows
    tail = (1.0 - how.level) / 2.0
    low, high = np.quantile(measure(sums), [tail, 1.0 - tail])
    return Estimate(float(measure(rows.sum(0))), float(low), float(high), len(rows), len(counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row against a baseline on the same items: how many it wins, and of each user (win, tie, lose), and the mean
    paired difference."""

    win: int
    tie: int
    lose: int
    difference: Figure
    by_user: Mapping[str, tuple[int, int, int]]


def compare(
    run: Mapping[Key, float], baseline: Mapping[Key, float], *, tie: float, how: Bootstrap
) -> Comparison | None:
    """Compare rewards by item; the first entry of a key is the user, the rest tells the item.

    A difference of at most `tie` is a tie. Only items of both count; None when they share none.
    """
    keys = sorted(run.keys() & baseline.keys())
    if not keys:
        return None
    differences = np.array([run[key] - baseline[key] for key in keys])
    users = np.array([key[0] for key in keys])
    win, tied, lose = _counts(differences, tie)
    paired = estimate(users, differences, np.ones(len(keys)), how)
    each = {str(user): _counts(differences[users == user], tie) for user in dict.fromkeys(users)}
    return Comparison(win=win, tie=tied, lose=lose, difference=paired.figure("higher"), by_user=each)


def _counts(differences: Floats, tie: float) -> tuple[int, int, int]:
    """How many are above `tie`, within, and below -`tie`."""
    win, lose = int((differences > tie).sum()), int((differences < -tie).sum())
    return win, len(differences) - win - lose, lose


def across_seeds(figures: Sequence[Figure], level: float) -> Figure:
    """One figure from the same row under several seeds: the mean, and an interval over users and seeds.

    The users are the same under every seed, so their uncertainty (the mean half-widths) does not shrink with
    more seeds; that of the seeds, z * sd / sqrt(seeds), is added to it in squares. Items of all seeds count.
    """
    values = np.array([f.value for f in figures])
    low = np.mean([f.value - f.low for f in figures])
    high = np.mean([f.high - f.value for f in figures])
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    spread = z * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    return Figure(
        value=mean,
        low=mean - float(np.hypot(low, spread)),
        high=mean + float(np.hypot(high, spread)),
        n=sum(f.n for f in figures),
        users=max(f.users for f in figures),
        better=figures[0].better,
    )
