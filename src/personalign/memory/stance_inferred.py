"""The preference vector that a user's choices show."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from personalign.contracts import Belief, PositiveFloat, UserError
from personalign.memory.choices import ChoiceMemory
from personalign.memory.logistic import Array, laplace
from personalign.ratings.dimensions import DIMENSIONS
from personalign.ratings.standard import Ratings
from personalign.types import Event, Request, Stance, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class StanceInferred(ChoiceMemory):
    """The stance p^u by Bayesian logistic regression on the user's choices (survey, section 4.1; PReF).

    P(chosen > rejected) = sigma(w^T (r(chosen) - r(rejected))), prior w ~ N(0, prior_scale^2 I), posterior by
    Laplace. A choice counts 0.5^(age / half_life), its age being how many of the user's choices are later than it:
    counted in events, so that it means the same on every clock and a user who pauses is not forgotten; choices of
    one time are of one age. The stance is w / max(1, max_d |w_d|), with that scale for its covariance: it keeps
    every ratio of weights, and a user who showed little keeps a weak stance. Without a choice there is no stance.
    """

    needs = ("events.choice",)
    provides = ("state.stance", "state.posterior")
    paper = "arXiv 2503.17003, section 4.1; PReF, arXiv 2503.06358"
    node = "preference memory / preference inference"

    def __init__(
        self,
        *,
        dimensions: list[str] | None,
        prior_scale: PositiveFloat,
        half_life: PositiveFloat | None,
        center: dict[str, float],
        scale: dict[str, PositiveFloat],
        clip: PositiveFloat | None,
    ) -> None:
        super().__init__()
        self._dimensions = tuple(DIMENSIONS if dimensions is None else dimensions)
        _check_dimensions(self._dimensions)
        self._prior_scale, self._half_life = prior_scale, half_life
        self._ratings = Ratings(center, scale, clip)
        self._differences: dict[str, dict[str, Array]] = {}

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        if not self.before(request):
            return UserState()
        mean, covariance = self.posterior(request)
        size = max(1.0, float(np.abs(mean).max()))
        rows = (covariance / size**2).tolist()
        return UserState(stance=Stance(self._dimensions, tuple((mean / size).tolist()), tuple(map(tuple, rows))))

    def posterior(self, request: Request) -> tuple[Array, Array]:
        """Mean [D] and covariance [D, D] of the unbounded w, from the choices before the request."""
        events = self.before(request)
        differences = np.array([self._difference(event) for event in events]).reshape(-1, len(self._dimensions))
        return laplace(differences, self._weights([event.time for event in events]), self._prior_scale)

    def belief(self, request: Request, texts: Sequence[str]) -> Belief:
        return Belief(*self.posterior(request), np.array([self._rating(text) for text in texts]))

    def forget(self, user: str) -> None:
        super().forget(user)
        self._differences.pop(user, None)

    def _weights(self, times: Sequence[float]) -> Array:
        """What each choice counts; `times` ascend."""
        ages = np.array([len(times) - bisect_right(times, time) for time in times], dtype=float)
        weights: Array = np.exp2(-ages / (np.inf if self._half_life is None else self._half_life))
        return weights

    def _difference(self, event: Event) -> Array:
        """r(chosen) - r(rejected), worked out once for each choice."""
        known = self._differences.setdefault(event.user, {})
        if event.id not in known:
            chosen, rejected = (self._rating(str(event.payload[key])) for key in ("chosen", "rejected"))
            known[event.id] = chosen - rejected
        return known[event.id]

    def _rating(self, text: str) -> Array:
        """r(text) [D]."""
        ratings = self._ratings(text)
        return np.array([ratings[d] for d in self._dimensions])


def _check_dimensions(names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise UserError("memory.stance_inferred.dimensions must name one or more dimensions, each once")
    if unknown := [name for name in names if name not in DIMENSIONS]:
        raise UserError(
            f"memory.stance_inferred.dimensions: {', '.join(unknown)} cannot be rated; there are "
            f"{', '.join(DIMENSIONS)}"
        )
