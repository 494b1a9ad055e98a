"""PARM: the base and one autoregressive reward model that is told the user's weights."""

from __future__ import annotations

from personalign.contracts import Generation, NonNegativeFloat
from personalign.generation.features import mixed, weighed
from personalign.generation.prompting import stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class PARM(Generation):
    """score(t) = log p_base(t) + strength log pi(t | w), pi(. | w) of the adapters mixed by the weights w.

    Two streams, whatever the number of dimensions. w is the stance divided by its |.|_1, as the weights were in
    training, so that the direction of the stance counts and not its length. Every token is a candidate. The sampling
    temperature is that of the sum, as in `genarm`. A user without a stance, or strength 0, gets the base's own answer.
    Raises UserError where a stance weighs a dimension that is in no training.
    """

    needs = ("state.stance", "policy.features")
    provides = ()
    paper = "PARM, ICML 2025; its released code"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "strength"

    def __init__(self, *, strength: NonNegativeFloat) -> None:
        self._strength = strength

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt, parts = self.render(request, state), weighed(state, spec)
        total = sum(abs(w) for w, _ in parts)
        if not total:
            return Plan((stream(prompt),))
        deltas = mixed([w / total for w, _ in parts], [deltas for _, deltas in parts])
        return Plan((stream(prompt), stream(prompt, self._strength, deltas)))
