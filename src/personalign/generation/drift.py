"""Drift: attributes of an answer as system prompts, whose effect on every token is weighed by the user's stance."""

from __future__ import annotations

from personalign.contracts import Generation, PositiveFloat, PositiveInt, UserError
from personalign.generation.features import listed
from personalign.generation.prompting import in_system, likeliest, stream
from personalign.plans import Deltas, Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class Drift(Generation):
    """softmax(h_LM + (1 / beta) sum_i p_i (h_i - h_base)): the trained policy, moved by what system prompts change.

    h_i is the base behind the system prompt of attribute i, h_base the base on the plain request, and p the stance:
    p_i < 0 moves away from an attribute. The base is its own small model, and h_LM then what training made of it; where
    there is a further model, that is the small one, as training made it, and h_LM the base. With `top_k` the sum is
    over the likeliest tokens of h_LM. Of a user's choices p is what memory=drift_weights finds by the prompts' own
    log-ratios, as in the paper, or memory=stance_inferred by computed ratings of the texts. A user without a stance
    gets the answer of h_LM. Raises UserError where a stance weighs a dimension without a prompt.
    """

    needs = ("state.stance", "model.weights")
    provides = ("plan.guide_model",)
    paper = "arXiv 2502.14289 (Drift)"
    node = "alignment through feedback / inference-time / prediction ensemble"
    strength = "beta"
    candidates = "top_k"

    def __init__(self, *, beta: PositiveFloat, attributes: dict[str, str], top_k: PositiveInt | None) -> None:
        self._beta, self._attributes, self._candidates = beta, attributes, likeliest(top_k)

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
        large: Deltas = () if spec.model else spec.aligned
        small: Deltas = spec.aligned if spec.model else ()
        asked = [(in_system(prompt, self._attributes[d]), p / self._beta) for d, p in stance.items()]
        asked += [(prompt, -sum(stance.values()) / self._beta)] if stance else []
        moved = [stream(told, weight, small, model=spec.model) for told, weight in asked]
        return Plan((stream(prompt, 1.0, large), *moved), self._candidates)
