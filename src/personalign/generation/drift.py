"""Drift: attributes of an answer as system prompts, whose effect on every token is weighed by the user's stance."""

from __future__ import annotations

from personalign.contracts import Generation, PositiveFloat, UserError
from personalign.generation.features import listed
from personalign.generation.prompting import in_system, stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class Drift(Generation):
    """softmax(h_LM + (1 / beta) sum_i p_i (h_i - h_base)): the trained policy, moved by what system prompts change.

    h_i is the base behind the system prompt of attribute i, h_base the base on the plain request, and p the stance:
    p_i < 0 moves away from an attribute. The base is its own small model here. Of a user's choices p is what
    memory=stance_inferred finds, by Bradley-Terry over ratings of the texts, where the paper rates them by the prompts'
    own log-ratios. A user without a stance gets the trained policy's answer. Raises UserError where a stance weighs a
    dimension without a prompt.
    """

    needs = ("state.stance", "model.weights")
    provides = ()
    paper = "arXiv 2502.14289 (Drift)"
    node = "alignment through feedback / inference-time / prediction ensemble"
    strength = "beta"

    def __init__(self, *, beta: PositiveFloat, attributes: dict[str, str]) -> None:
        self._beta, self._attributes = beta, attributes

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = self.render(request, state)
        stance = {d: p for d, p in (state.stance.as_dict() if state.stance else {}).items() if p != 0.0}
        if unknown := [d for d in stance if d not in self._attributes]:
            raise UserError(
                f"the user has a stance on {unknown[0]!r}, which no prompt stands for: add one to "
                f"generation.attributes (now {listed(self._attributes)}), or leave it out of the stance"
            )
        moved = [stream(in_system(prompt, self._attributes[d]), p / self._beta) for d, p in stance.items()]
        rest = [stream(prompt, -sum(stance.values()) / self._beta)] if stance else []
        return Plan((stream(prompt, 1.0, spec.aligned), *moved, *rest))
