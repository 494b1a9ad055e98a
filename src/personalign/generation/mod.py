"""Multi-objective decoding: one policy a dimension, whose next-token probabilities become those of one policy."""

from __future__ import annotations

from typing import Literal

from personalign.contracts import Generation
from personalign.generation.features import shares
from personalign.generation.prompting import stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class Mod(Generation):
    """The policy that is best for sum_i w_i R_i, from policies pi_i that are each best for one R_i (MOD).

    pi_i is the policy's feature of dimension i, trained from the base pi_ref. Under the reverse KL divergence, as DPO
    has it, log pi = (1 - sum_i w_i) log pi_ref + sum_i w_i log pi_i; under the others see `plans.Plan`.
    With `simplex`, as in the paper, w are the positive weights of the stance divided by their sum: nothing was trained
    for wanting less of a dimension, so that such a wish counts for nothing, and who has no other gets the base. With
    `signed` they are the stance's own: w_i < 0 takes a reward away, of which the same formula holds, and what the
    weights lack of 1 is the base's. A user without a stance gets the base's answer. Raises UserError where a stance
    weighs a dimension without a feature.
    """

    needs = ("state.stance", "policy.features")
    provides = ()
    paper = "arXiv 2406.18853 (MOD)"
    node = "alignment through feedback / inference-time / prediction ensemble"

    def __init__(
        self,
        *,
        divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"],
        weights: Literal["simplex", "signed"],
    ) -> None:
        self._divergence, self._weights = divergence, weights

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = self.render(request, state)
        parts = shares(state, spec, self._weights)
        if not parts:
            return Plan((stream(prompt),))
        guides = [stream(prompt, w, deltas) for w, deltas in parts]
        if self._divergence != "reverse_kl":
            return Plan((stream(prompt, 0.0), *guides), combine=self._divergence)
        rest = 0.0 if self._weights == "simplex" else 1.0 - sum(w for w, _ in parts)
        return Plan((*guides, stream(prompt, rest)) if rest else tuple(guides))
