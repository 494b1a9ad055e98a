"""GenARM: the base and autoregressive reward models, one for each dimension, weighed by the user's stance."""

from __future__ import annotations

from personalign.contracts import Generation, NonNegativeFloat, PositiveInt
from personalign.generation.features import weighed
from personalign.generation.prompting import likeliest, stream
from personalign.plans import Plan, PolicySpec
from personalign.types import Messages, Request, UserState


class GenARM(Generation):
    """score(t) = log p_base(t) + sum_k alpha_k log pi_k(t), alpha_k = strength x the user's weight of dimension k.

    Sampling at temperature T draws from the softmax of score / T. That is what the released code does: its library
    divides the score by 1 + sum_k alpha_k, which its temperature of 1 / (1 + sum_k alpha_k) undoes. A dimension of
    weight zero takes no part; a user without a stance, or strength 0, gets the base's own answer. With `top_k` and the
    same strength it is PAD without a reference. The paper's weights are positive. A negative one rewards what its model
    finds unlikely, of which a whole vocabulary is full: then `top_k` keeps to what the base finds likely. Where there
    is a further model, the reward models are its own. Raises UserError where a stance weighs a dimension that no reward
    model was trained for.
    """

    needs = ("state.stance", "policy.features")
    provides = ("plan.guide_model",)
    paper = "arXiv 2410.08193 (guided decoding; several objectives)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "strength"
    candidates = "top_k"

    def __init__(self, *, strength: NonNegativeFloat, top_k: PositiveInt | None) -> None:
        self._strength, self._candidates = strength, likeliest(top_k)

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = self.render(request, state)
        guides = [stream(prompt, self._strength * w, deltas, model=spec.model) for w, deltas in weighed(state, spec)]
        return Plan((stream(prompt), *guides), self._candidates)
