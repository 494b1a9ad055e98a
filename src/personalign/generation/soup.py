"""Rewarded soups: the weights of one model a dimension, averaged by the user's stance."""

from __future__ import annotations

from typing import Literal

from personalign.contracts import Generation, PositiveFloat
from personalign.generation.features import mixed, shares
from personalign.generation.prompting import stream
from personalign.types import Messages, Plan, PolicySpec, Request, UserState


class Soup(Generation):
    """One model of weights theta(w) = base + scale x sum_k w_k theta_k: a single stream, whatever the dimensions.

    theta_k is what was trained for dimension k, from one init (the base): its products B A are summed, not its
    factors A and B, so that the weights are exactly linear in w. With `simplex`, as in the paper, w are the positive
    weights of the stance divided by their sum: who wants more of nothing gets the base. With `signed` they are the
    stance's own, and a negative one takes its adapter away from the base (task negation, arXiv 2212.04089). A user
    without a stance gets the base's answer. Raises UserError where a stance weighs a dimension without a feature.
    """

    needs = ("state.stance", "policy.features")
    provides = ()
    paper = "arXiv 2306.04488, eq. 1"
    node = "alignment through feedback / multi-objective / direct objective-space optimization"
    strength = "scale"

    def __init__(self, *, weights: Literal["simplex", "signed"], scale: PositiveFloat) -> None:
        self._weights, self._scale = weights, scale

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        parts = shares(state, spec, self._weights)
        deltas = mixed([self._scale * w for w, _ in parts], [deltas for _, deltas in parts])
        return Plan((stream(self.render(request, state), deltas=deltas),))
