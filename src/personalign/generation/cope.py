"""Contrasting personal preference: what a user's own adapter changes in the next-token distribution, made stronger."""

from __future__ import annotations

from personalign.contracts import Fraction, Generation, NonNegativeFloat
from personalign.generation.prompting import stream
from personalign.plans import Candidates, Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class CoPe(Generation):
    """score(t) = log p_user(t) - alpha log p_shared(t) on the tokens with p_user(t) >= plausible max p_user (CoPe).

    p_user is the policy with the user's own adapter, p_shared the same without it: what the stages before made of the
    base for everybody. The released code adds 1e-8 to both probabilities, which keeps a token that p_shared hardly
    knows from gaining more than 18.4 alpha; here nothing is added. A user without an adapter of their own gets the
    shared policy's answer.
    """

    needs = ("policy.own",)
    provides = ()
    paper = "arXiv 2506.12109 (CoPe)"
    node = "alignment through feedback / inference-time / prediction ensemble"
    strength = "alpha"

    def __init__(self, *, alpha: NonNegativeFloat, plausible: Fraction) -> None:
        self._alpha, self._candidates = alpha, Candidates("plausible", fraction=plausible)

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = self.render(request, state)
        user = stream(prompt, 1.0, spec.aligned)
        if not spec.own:
            return Plan((user,))
        shared = spec.aligned[: -len(spec.own)]
        return Plan((user, stream(prompt, -self._alpha, shared)), self._candidates)
