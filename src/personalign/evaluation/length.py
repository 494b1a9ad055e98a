"""A reward at controlled length: what an answer would earn were it as long as the base's. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personalign.results import Calibration


@dataclass(frozen=True, slots=True)
class LengthControl:
    """Per user, the slope of reward on x = log(1 + words) and the mean of x, over the base's answers.

    A reward R of an answer with x becomes R - slope * (x - mean). The slope is ordinary least squares, drawn
    to the slope pooled over users (each about its own means) by a prior worth `shrinkage` typical points:

        slope_u = (Sxy_u + k * pooled) / (Sxx_u + k),   k = shrinkage * (sum of Sxx) / (number of points)

    so that 0 leaves least squares as it is, and a user with few points, or all of one length, gets the pooled
    slope. A user without any gets the pooled slope and the mean over all points. log(1 + words) is finite for
    the empty answer. Slopes are taken as known: their own error is not part of the intervals.
    """

    slopes: dict[str, float]
    means: dict[str, float]
    slope: float
    mean: float

    @classmethod
    def fit(cls, points: Sequence[Calibration], shrinkage: float) -> LengthControl | None:
        """Fit to base answers; None when no user has answers of two lengths: no slope can be known then."""
        groups: dict[str, list[Calibration]] = {}
        for point in points:
            groups.setdefault(point.user, []).append(point)
        moments = {user: _moments(group) for user, group in groups.items()}
        sxx = sum(m[1] for m in moments.values())
        if sxx <= 0.0:
            return None
        pooled = sum(m[2] for m in moments.values()) / sxx
        prior = shrinkage * sxx / len(points)
        slopes = {
            user: (xy + prior * pooled) / (xx + prior) if xx + prior > 0.0 else pooled
            for user, (_, xx, xy) in moments.items()
        }
        overall = float(np.mean([np.log1p(point.words) for point in points]))
        return cls(slopes, {user: m[0] for user, m in moments.items()}, pooled, overall)

    def adjusted(self, user: str, words: int, reward: float) -> float:
        """The reward of an answer of so many words, moved to the length of the base's answers."""
        x = float(np.log1p(words))
        return reward - self.slopes.get(user, self.slope) * (x - self.means.get(user, self.mean))


def _moments(points: Sequence[Calibration]) -> tuple[float, float, float]:
    """The mean of x, Sxx and Sxy of one user's points."""
    x = np.log1p([point.words for point in points])
    y = np.array([point.reward for point in points])
    # Equal lengths say nothing of the slope; a rounded mean must not make them look different.
    centred = x - x.mean() if np.ptp(x) else np.zeros_like(x)
    return float(x.mean()), float(centred @ centred), float(centred @ y)
