"""Three ways to choose the next pair: by chance, by how open its answer is, by how much its answer would tell.

No pair is asked that would tell nothing, since both answers are rated alike, unless there are only such ones.
"""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from personalign.contracts import Query, Seed
from personalign.runtime.seeds import derive

Array = NDArray[np.float64]


class RandomPair(Query):
    """Every pair alike, drawn from the seed, the user and the round."""

    needs = ()
    provides = ()
    paper = "arXiv 2503.17003, section 4.3"
    node = "alignment through feedback / multi-objective / interactive preference learning"

    def __init__(self, *, seed: Seed) -> None:
        self._seed = seed

    def choose(self, user: str, round: int, differences: Array, mean: Array, covariance: Array) -> int:
        rows = np.flatnonzero(_telling(differences))
        draw = Random(derive(self._seed, "query", user, str(round)))
        return int(rows[draw.randrange(len(rows))])


class UncertainPair(Query):
    """The pair whose answer is the most open: P = sigma(w^T x) closest to 1/2 at the mean of w.

    It knows the mean alone, and so may ask again and again along a direction that is known well (Lewis and Gale
    1994, uncertainty sampling).
    """

    needs = ("state.posterior",)
    provides = ()
    paper = "Lewis and Gale, SIGIR 1994; arXiv 2503.17003, section 4.3"
    node = "alignment through feedback / multi-objective / interactive preference learning"

    def choose(self, user: str, round: int, differences: Array, mean: Array, covariance: Array) -> int:
        return _best(-np.abs(differences @ mean), differences)


class DOptimalPair(Query):
    """The pair whose answer adds most to log det of the posterior's precision (D-optimal design).

    With H the precision and S its inverse, an answer on x adds sigma'(w^T x) x x^T to H, and by the matrix
    determinant lemma log det(H + sigma' x x^T) - log det H = log(1 + sigma'(w^T x) x^T S x), here at the mean of w
    (Chaloner and Verdinelli 1995). PReF takes the largest x^T H^-1 x, on request times sigma'(w^T x)^2.
    """

    needs = ("state.posterior",)
    provides = ()
    paper = "Chaloner and Verdinelli, Statistical Science 1995; PReF, arXiv 2503.06358"
    node = "alignment through feedback / multi-objective / interactive preference learning"

    def choose(self, user: str, round: int, differences: Array, mean: Array, covariance: Array) -> int:
        return _best(gains(differences, mean, covariance), differences)


def gains(differences: Array, mean: Array, covariance: Array) -> Array:
    """What an answer to each row would add to log det of the precision [n], in nats."""
    # sigma'(z) = sigma(z) sigma(-z), exact far out too.
    odds = differences @ mean
    slope = np.exp(-np.logaddexp(0.0, odds) - np.logaddexp(0.0, -odds))
    spread = ((differences @ covariance) * differences).sum(axis=1)
    gain: Array = np.log1p(slope * spread)
    return gain


def _telling(differences: Array) -> NDArray[np.bool_]:
    """Which rows are not zero; all of them where every row is."""
    telling: NDArray[np.bool_] = np.asarray(differences.any(axis=1))
    if not telling.any():
        telling[:] = True
    return telling


def _best(values: Array, differences: Array) -> int:
    """The first of the highest values among the rows that tell something."""
    return int(np.argmax(np.where(_telling(differences), values, -np.inf)))
