"""How far users' answers reach in several dimensions at once: the hypervolume of their Pareto front. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalign.evaluation.statistics import Bootstrap, Estimate, Floats


def hypervolume(points: Floats, corner: float) -> float:
    """The volume that is dominated by `points` (n, dimensions) above (corner, ..., corner); larger is better.

    Exact, slice by slice of the last dimension: n ** (dimensions - 1) steps. In the product of the dimensions'
    units (Zitzler and Thiele, PPSN 1998).
    """
    above = points[(points > corner).all(axis=1)] - corner
    return _volume(above)


def _volume(above: Floats) -> float:
    if above.shape[1] == 1:
        return float(above.max(initial=0.0))
    ordered = above[np.argsort(-above[:, -1], kind="stable")]
    heights = -np.diff(ordered[:, -1], append=0.0)
    return sum(float(h) * _volume(ordered[: i + 1, :-1]) for i, h in enumerate(heights) if h)


def front(users: Sequence[str], ratings: Floats, corner: float, how: Bootstrap) -> Estimate:
    """The hypervolume of the users' mean ratings; `ratings` (n, dimensions) holds an item of `users` (n,) a row.

    The users are the points of the front, so they stay, and the interval is over the items of each, redrawn. Chance
    pushes a front outwards, the redrawn ones further than the one that is measured: the interval has their spread,
    but lies around the value. Compare fronts of as many users and items.
    """
    items = _by_user(np.array(users), ratings)
    if not items:
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    rng = np.random.default_rng(how.seed)
    value = hypervolume(np.array([rows.mean(axis=0) for rows in items]), corner)
    redrawn = np.stack([rows[rng.integers(len(rows), size=(how.resamples, len(rows)))].mean(axis=1) for rows in items])
    drawn = np.array([hypervolume(redrawn[:, i], corner) for i in range(how.resamples)])
    tail = (1.0 - how.level) / 2.0
    low, high = value + np.quantile(drawn - drawn.mean(), [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high), len(ratings), len(items))


def _by_user(users: NDArray[Any], ratings: Floats) -> list[Floats]:
    """The items of each user (items, dimensions), all in an order that does not depend on that of arrival."""
    order = np.lexsort((*ratings.T, users))
    users, ratings = users[order], ratings[order]
    starts = np.flatnonzero(users[1:] != users[:-1]) + 1
    return [rows for rows in np.split(ratings, starts) if len(rows)]
