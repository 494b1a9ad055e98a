"""Context steering with several contexts: each thing that is known of a user is told by itself, with its own weight."""

from __future__ import annotations

from personalign.contracts import Generation, Placement
from personalign.generation.prompting import preference_template, stream, told
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class MultiCoS(Generation):
    """score(t) = (1 - sum_i lambda_i) log p(t | none) + sum_i lambda_i log p(t | context_i).

    Each recalled snippet is one context, told in the preference template, and lambda_i is `strength` times its weight:
    1, but where memory infers it (cos_lambda). All streams read the trained policy. lambda = 0 is the plain request:
    the zero point is another than that of `cos`, whose strength s is here, with one context, 1 + s. Every token is a
    candidate. A user of whom nothing is recalled is asked plainly.
    """

    needs = ("state.snippets", "model.weights")
    provides = ()
    paper = "arXiv 2405.01768 (CoS, several contexts)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "strength"

    def __init__(self, *, strength: float, template: str, placement: Placement) -> None:
        self._strength = strength
        self._template = preference_template(template, placement)
        self._placement = placement

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        contexts = [
            stream(self._told(request, snippet.text), self._strength * snippet.weight, spec.aligned)
            for snippet in state.snippets
        ]
        rest = 1.0 - sum(context.weight for context in contexts)
        return Plan((stream(self.render(request, state), rest, spec.aligned), *contexts)).simplified()

    def _told(self, request: Request, text: str) -> Messages:
        return told(request.messages, text, self._template, self._placement)
