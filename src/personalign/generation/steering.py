"""Steering: vectors in the residual stream, weighed by the user's stance."""

from __future__ import annotations

from personalign.contracts import Generation
from personalign.generation.features import mixed, steering
from personalign.generation.prompting import stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class Steering(Generation):
    """The trained policy with sum_k strength w_k v_k added behind the vectors' layer, at every token: one stream.

    w are the weights of the stance, of either sign, v_k the vectors of its dimensions. A user without a stance, or
    strength 0, gets the policy as it is; a negative strength opposes the stance. Raises UserError where a stance weighs
    a dimension that has no vector.
    """

    needs = ("state.stance", "policy.vectors")
    provides = ()
    paper = "BiPO, NeurIPS 2024 (strength, vectors that add); arXiv 2312.06681"
    node = "personalized generation / parameter / adapter"
    strength = "strength"

    def __init__(self, *, strength: float) -> None:
        self._strength = strength

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        parts = steering(state, spec)
        deltas = mixed([self._strength * w for w, _ in parts], [deltas for _, deltas in parts])
        return Plan((stream(self.render(request, state), deltas=(*spec.aligned, *deltas)),))
