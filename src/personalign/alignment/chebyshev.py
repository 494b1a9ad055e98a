"""Direct preference optimisation of the objective that fares worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import zeros

from personalign.alignment.conditioned import Aim, Conditioned, ConditionedKeys, Margins, Weights
from personalign.contracts import NonNegativeFloat
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.types import Pair


def utility(ratings: Sequence[float], weights: Sequence[float], utopia: float, temperature: float) -> float:
    """-max_j |w_j| (utopia - s_j r_j), s_j the sign of w_j: how far the worst objective falls short of what can be had.

    With a temperature T > 0 it is smooth, -T log sum_j exp(|w_j| (utopia - s_j r_j) / T) (arXiv 2402.19078, section 3);
    T -> 0 is the hard one. In units of rating; an objective of weight 0 takes no part.
    """
    short = [abs(w) * (utopia - math.copysign(1.0, w) * r) for w, r in zip(weights, ratings, strict=True) if w]
    worst = max(short)
    if temperature == 0.0:
        return -worst
    return -worst - temperature * math.log(math.fsum(math.exp((one - worst) / temperature) for one in short))


class Chebyshev(Conditioned):
    """DPO on pairs ordered by the weighted Chebyshev utility of each answer (see `utility`), one policy for all w.

    Unlike a sum it reaches the parts of a front that bulge inwards. The order is the utility's own, so that, unlike in
    MODPO, nothing is left for a margin. It is of the single answer, not of the policy's mean rating.
    """

    needs = ("pairs", "ratings")
    provides = ("policy.features",)
    paper = "arXiv 2402.19078, section 3 (utility); arXiv 2305.18290, eq. 7 (loss); mixing by w: arXiv 2407.15762"
    node = "alignment through feedback / multi-objective / direct objective-space optimization"
    stage = "chebyshev"

    def __init__(self, *, utopia: float, temperature: NonNegativeFloat, **conditioned: Unpack[ConditionedKeys]) -> None:
        super().__init__(**conditioned)
        self.utopia, self.temperature = utopia, temperature

    def told(self, pair: Pair) -> Mapping[str, object]:
        return pair.ratings

    def aim(self, pair: Pair, dimensions: Sequence[str], weights: Weights) -> Aim | None:
        if any(dimension not in pair.ratings for dimension in dimensions):
            return None
        chosen, rejected = zip(*(pair.ratings[dimension] for dimension in dimensions), strict=True)
        gap = self._utility(chosen, weights) - self._utility(rejected, weights)
        if gap == 0.0 or abs(gap) < self.min_gap:
            return None
        return Aim(pair if gap > 0 else pair.swapped(), weights, 1.0, (0.0,) * len(weights))

    def _utility(self, ratings: Sequence[float], weights: Weights) -> float:
        return utility(ratings, weights, self.utopia, self.temperature)

    def margins(self, policy: Policy, rows: Sequence[Branches], aims: Sequence[Aim], known: Sequence[str]) -> Margins:
        return None, lambda: zeros(len(aims))
