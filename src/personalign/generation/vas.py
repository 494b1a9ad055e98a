"""Value-augmented sampling: the policy tilted by how much reward each candidate leads to, weighed by the stance."""

from __future__ import annotations

from personalign.contracts import Generation, NonNegativeFloat, PositiveInt, UserError
from personalign.generation.features import listed
from personalign.plans import Candidates, Chat, Plan, PolicySpec, Rater, Stream, Value
from personalign.types import Messages, Request, UserState

HEAD = "vas"


class VAS(Generation):
    """pi(v) prop. to pi_0(v) exp(beta Q(y_<t, v)) on the k likeliest tokens of pi_0 (arXiv 2405.06639), the policy.

    Q = sum_d w_d V_d(y_<t v), the head of stage `vas` for every dimension and the user's stance w: values add linearly,
    so that one head serves all users. A head of a guide without dimensions has one value, which counts for everyone. A
    user without a stance, or beta 0, gets the policy's own answer, and so does everyone before the stage has run: then
    its guide may read this plan. Raises UserError where a stance weighs a dimension that has no value.
    """

    needs = ("state.stance", "policy.heads.vas")
    provides = ()
    paper = "VAS, arXiv 2405.06639"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "beta"

    def __init__(self, *, beta: NonNegativeFloat, top_k: PositiveInt) -> None:
        self._beta = beta
        self._candidates = Candidates("top_k", k=top_k)

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = (Chat(self.render(request, state)),)
        streams = [Stream(prompt, deltas=spec.aligned)]
        if HEAD in spec.raters:
            head = spec.raters[HEAD]
            weights = _weights(state, head)
            if any(weights) or not head.dimensions:
                streams.append(Stream(prompt, self._beta, head.deltas, Value(HEAD, weights)))
        return Plan(tuple(streams), self._candidates)


def _weights(state: UserState, head: Rater) -> tuple[float, ...]:
    """The stance, dimension by dimension of the head."""
    stance = state.stance.as_dict() if state.stance else {}
    if head.dimensions and (unknown := sorted(d for d, w in stance.items() if w and d not in head.dimensions)):
        raise UserError(
            f"the user has a stance on {unknown[0]!r}, but no value was trained for it: there are "
            f"{listed(head.dimensions)}; train one, or leave the dimension out of the stance"
        )
    return tuple(stance.get(dimension, 0.0) for dimension in head.dimensions)
