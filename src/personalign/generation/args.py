"""ARGS: the policy's own likeliest tokens, ordered by what a reward makes of the answer with each behind it."""

from __future__ import annotations

from typing import ClassVar

from personalign.contracts import Generation, NonNegativeFloat, PositiveInt
from personalign.generation.features import rater
from personalign.plans import Candidates, Chat, Plan, PolicySpec, Stream, Value
from personalign.types import Messages, Request, UserState


class Args(Generation):
    """score(v) = log p(v | x, y_<t) + w r(x, y_<t v) on the k likeliest tokens of the policy (arXiv 2402.01694).

    r is the head of stage `reward_head`, which reads the beginning of an answer as it reads whole ones. The paper's is
    a model of its own, ours reads the states that the policy has anyway. Weight 0 is the policy on its top k.
    """

    needs: ClassVar[tuple[str, ...]] = ("policy.heads.bradley_terry",)
    provides = ()
    paper = "ARGS, ICLR 2024, arXiv 2402.01694"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    strength = "weight"

    head: ClassVar[str] = "bradley_terry"

    def __init__(self, *, weight: NonNegativeFloat, top_k: PositiveInt) -> None:
        self._weight = weight
        self._candidates = Candidates("top_k", k=top_k)

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = (Chat(self.render(request, state)),)
        value = Value(self.head, state.vectors.get(self.head, ()))
        reward = Stream(prompt, self._weight, rater(spec, self.head).deltas, value)
        return Plan((Stream(prompt, deltas=spec.aligned), reward), self._candidates)


class ArgsLoRe(Args):
    """The same with the user's own reward: LoRe's basis, weighed as memory `lore_weights` found (arXiv 2504.14439); the
    mean of the weights in training for a user without."""

    needs = ("policy.heads.lore", "state.vectors.lore")
    provides = ()
    paper = "ARGS, ICLR 2024, arXiv 2402.01694; LoRe, arXiv 2504.14439"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    head = "lore"
