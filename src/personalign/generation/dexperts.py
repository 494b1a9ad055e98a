"""Experts against anti-experts: what one model has learned beside another, added to the base at decoding time."""

from __future__ import annotations

from personalign.contracts import Generation, NonNegativeFloat, PositiveInt, UserError
from personalign.generation.features import listed
from personalign.generation.prompting import likeliest, stream
from personalign.plans import Deltas, Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class DExperts(Generation):
    """log p_LM + strength (log p_expert - log p_anti), of all tokens or the base's `top_k` likeliest.

    p_LM is the base. Expert and anti-expert are adapters of the policy by name, on the base; null is for the expert
    what training made of the base, for this user where they have an adapter of their own, and for the anti-expert the
    base itself. Where there is a further model they are of that one, a small proxy (proxy tuning). All read the plain
    request. Raises UserError for an adapter that the policy lacks, and for a proxy that would be divided by itself.
    """

    needs = ("policy.aligned",)
    provides = ("plan.guide_model",)
    paper = "arXiv 2105.03023 (DExperts); arXiv 2401.08565 (proxy tuning)"
    node = "alignment through feedback / inference-time / prediction ensemble"
    strength = "strength"
    candidates = "top_k"

    def __init__(
        self, *, strength: NonNegativeFloat, expert: str | None, anti_expert: str | None, top_k: PositiveInt | None
    ) -> None:
        self._strength, self._expert, self._anti_expert = strength, expert, anti_expert
        self._candidates = likeliest(top_k)

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = self.render(request, state)
        expert = spec.aligned if self._expert is None else _named(self._expert, spec)
        anti_expert: Deltas = () if self._anti_expert is None else _named(self._anti_expert, spec)
        if spec.model and expert == anti_expert:
            raise UserError(
                "guide_model has learned nothing here, so that expert and anti-expert are one: add a stage of "
                "alignment that trains it"
            )
        sides = ((self._strength, expert), (-self._strength, anti_expert))
        guides = [stream(prompt, weight, deltas, model=spec.model) for weight, deltas in sides]
        return Plan((stream(prompt), *guides), self._candidates)


def _named(adapter: str, spec: PolicySpec) -> Deltas:
    if adapter not in spec.adapters:
        raise UserError(f"the policy has no adapter {adapter!r}: it has {listed(spec.adapters)}")
    return ((adapter, 1.0),)
