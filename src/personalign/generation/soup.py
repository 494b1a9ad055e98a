"""Rewarded soups: the weights of one model a dimension, averaged by the user's stance."""

from __future__ import annotations

from typing import Literal

from personalign.contracts import Generation, PositiveFloat, UserError
from personalign.generation.features import mixed, shares
from personalign.plans import Chat, Merge, Plan, PolicySpec, Stream
from personalign.types import Messages, Request, UserState


class Soup(Generation):
    """One model of weights theta(w) = base + scale x sum_k w_k theta_k: a single stream, whatever the dimensions.

    theta_k is what was trained for dimension k, from one init (the base). In `form` delta its products B A are summed,
    so that the weights are exactly linear in w; in `form` factor A and B each are, as the released personalized soups
    average LoRA weights (arXiv 2310.11564): (sum_k w_k B_k) (sum_k w_k A_k), which is another model wherever more than
    one dimension has a weight. With `simplex`, as in the paper, w are the positive
    weights of the stance divided by their sum: who wants more of nothing gets the base. With `signed` they are the
    stance's own, and a negative one takes its adapter away from the base (task negation, arXiv 2212.04089). A user
    without a stance gets the base's answer. Raises UserError where a stance weighs a dimension without a feature, and
    for signed weights of factors, in whose product a sign is lost.
    """

    needs = ("state.stance", "policy.features")
    provides = ()
    paper = "arXiv 2306.04488, eq. 1; arXiv 2310.11564"
    node = "alignment through feedback / multi-objective / direct objective-space optimization"
    strength = "scale"

    def __init__(
        self, *, weights: Literal["simplex", "signed"], scale: PositiveFloat, form: Literal["delta", "factor"]
    ) -> None:
        if (form, weights) == ("factor", "signed"):
            raise UserError(
                "generation.form=factor has no signed weights, since a factor's sign is lost in its product: "
                "use generation.weights=simplex or generation.form=delta"
            )
        self._weights, self._scale = weights, scale
        self._merge: Merge = "factors" if form == "factor" else "products"

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        parts = shares(state, spec, self._weights)
        deltas = mixed([self._scale * w for w, _ in parts], [deltas for _, deltas in parts])
        return Plan((Stream((Chat(self.render(request, state)),), deltas=deltas, merge=self._merge),))
