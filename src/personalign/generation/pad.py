"""Personalized alignment at decoding time (PAD, arXiv 2410.04070): a weighted log-ratio on top of the base.

All forms give score(t) = log p_LM(t) + beta sum_k w_k [log pihat_k(t) - log p_ref(t)] on the likeliest tokens
of p_LM (eq. 13). p_LM and p_ref are the base without adapters; where there is a further model (`guide_model`), the
guides and p_ref are that one, with the tokens of the base told in its own (see `policy.covering`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from personalign.contracts import Generation, NonNegativeFloat, Placement, PositiveInt, UserError
from personalign.generation.features import listed, weighed
from personalign.generation.prompting import preference_prompt, preference_template, stream
from personalign.plans import Candidates, Deltas, Plan, PolicySpec
from personalign.types import Messages, Request, UserState

Guide = tuple[float, Deltas, str | None]


@dataclass(frozen=True)
class _Rule:
    """Eq. 13 for guides (w_k, deltas, head) that read one prompt."""

    beta: float
    reference: Literal["backbone", "base", "none"]
    top_k: int
    score_every: int

    def plan(self, base: Messages, prompt: Messages, guides: Sequence[Guide], model: str | None) -> Plan:
        streams = [stream(base)]
        streams += [stream(prompt, self.beta * w, deltas, head, model) for w, deltas, head in guides]
        if guides and self.reference != "none":
            total = sum(w for w, _, _ in guides)
            backbone = self.reference == "backbone"
            reference = stream(prompt, model=model) if backbone else stream(base)
            streams.append(replace(reference, weight=-self.beta * total))
        return Plan(tuple(streams), Candidates("top_k", k=self.top_k), score_every=self.score_every)


class Pad(Generation):
    """PAD with K features: one adapter a dimension is log pihat_k, the user's stance the signed weights w_k.

    This is our reading of eq. 4 to 10; the released code has a single guide (PadScalar). The features read
    the plain prompt. A dimension of weight zero takes no part; a user without a stance gets the base's own
    answer. Raises UserError where a stance weighs a dimension that no feature was trained for.
    """

    needs = ("state.stance", "policy.features")
    provides = ("plan.guide_model",)
    paper = "arXiv 2410.04070, eq. 4-10 and 13 (K features: our reading)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "beta"

    def __init__(
        self,
        *,
        beta: NonNegativeFloat,
        reference: Literal["backbone", "base", "none"],
        base_sees_preference: bool,
        top_k: PositiveInt,
        score_every: PositiveInt,
        template: str,
        placement: Placement,
    ) -> None:
        self._rule = _Rule(beta, reference, top_k, score_every)
        self._base_sees_preference = base_sees_preference
        self._template = preference_template(template, placement)
        self._placement = placement

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        base = plain = self.render(request, state)
        if self._base_sees_preference:
            base = preference_prompt(request, state, self._template, self._placement)
        return self._rule.plan(base, plain, [(w, deltas, None) for w, deltas in weighed(state, spec)], spec.model)


class PadScalar(Generation):
    """PAD with one guide: the aligned policy, conditioned on the profile in its prompt.

    The paper's scalar form and, with the base as the reference, the released code's two-model mixture
    (1 - beta) log p_LM + beta log pihat. A further model is a guide as it is, trained elsewhere, or as stages train it
    here. `head` names a map of the guide's last hidden state, the value head
    w_p (null: the identity). A user without a profile is asked plainly. Raises UserError where the policy has
    no such head, and for a further model that would be divided by itself.
    """

    needs = ("state.profile", "policy.aligned")
    provides = ("plan.guide_model",)
    paper = "arXiv 2410.04070, eq. 13; its released code (commit 51bea05)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "beta"

    def __init__(
        self,
        *,
        beta: NonNegativeFloat,
        reference: Literal["backbone", "base", "none"],
        base_sees_preference: bool,
        top_k: PositiveInt,
        score_every: PositiveInt,
        head: str | None,
        template: str,
        placement: Placement,
    ) -> None:
        self._rule = _Rule(beta, reference, top_k, score_every)
        self._base_sees_preference = base_sees_preference
        self._head = head
        self._template = preference_template(template, placement)
        self._placement = placement

    def render(self, request: Request, state: UserState) -> Messages:
        return preference_prompt(request, state, self._template, self._placement)

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        if self._head is not None and self._head not in spec.heads:
            raise UserError(f"the policy has no head {self._head!r}: it has {listed(spec.heads)}")
        if spec.model and self._head is None and not spec.aligned and self._rule.reference == "backbone":
            raise UserError(
                "guide_model has learned nothing here, so that it would be divided by itself: add a stage of alignment "
                "that trains it, or set generation.reference=base, as generation=pad_released does"
            )
        prompt = self.render(request, state)
        base = prompt if self._base_sees_preference else request.messages
        return self._rule.plan(base, prompt, [(1.0, spec.aligned, self._head)], spec.model)
