"""Encoding: the user is told to the model as vectors that were learned, not as text."""

from __future__ import annotations

from personalign.contracts import Generation
from personalign.plans import Chat, Plan, PolicySpec, Soft, Stream
from personalign.types import Messages, Request, UserState

HEAD = "soft_tokens"


class SoftTokens(Generation):
    """The plain request behind the user's soft tokens, which stage `soft_tokens` has trained (P-RLHF).

    They stand before everything else, where the chat template's own tokens are still to come (the released code, for
    models without a chat, puts them behind the BOS). Users whom that stage did not see get the generic tokens.
    """

    needs = ("policy.heads.soft_tokens",)
    provides = ()
    paper = "arXiv 2402.05133 (P-RLHF)"
    node = "personalized generation / encoding / contextual embedding"

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        prompt = (Soft(HEAD, (request.user,)), Chat(self.render(request, state)))
        return Plan((Stream(prompt, deltas=spec.aligned),))
