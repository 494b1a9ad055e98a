"""Encoding: what the user did is told to the model as vectors that a trained encoder makes of it, not as text."""

from __future__ import annotations

from personalign.contracts import Generation
from personalign.plans import Chat, Plan, PolicySpec, Stream
from personalign.policy.prefix import history_prefix
from personalign.types import Messages, Request, UserState


class HistoryPrefix(Generation):
    """The plain request behind the soft tokens of the user's history, as stages `pplug` and `e2p` train them.

    They stand before everything else. A user without a history gets what the plain prompt gives.
    """

    needs = ("policy.heads.history", "state.history", "state.vectors.request")
    provides = ()
    paper = "arXiv 2409.11901 (PPlug); arXiv 2505.17051 (E2P)"
    node = "personalized generation / encoding / contextual embedding"

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        soft = history_prefix(state)
        said = Chat(self.render(request, state))
        return Plan((Stream((said,) if soft is None else (soft, said), deltas=spec.aligned),))
