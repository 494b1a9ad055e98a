"""The preference vector that a trained head reads in what the user said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personalign.memory.log import EventMemory, text_of
from personalign.types import Request, Stance, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

HEAD = "stance"


class StanceHead(EventMemory):
    """The stance p^u is what the policy's stance head makes of the user's newest statement (PAD, arXiv 2410.04070,
    algorithm 2: w_p = pi_p(p)). Before that head is trained nobody has a stance."""

    needs = ("policy.heads.stance", "events.statement")
    provides = ("state.stance",)
    paper = "arXiv 2410.04070, algorithm 2"
    node = "preference memory / explicit"

    def __init__(self) -> None:
        super().__init__(("statement",))
        self._read: dict[str, Stance] = {}
        self._head: object = None

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        stated = self.texts(request)
        if policy is None or HEAD not in policy.heads or not stated:
            return UserState()
        return UserState(stance=self._stance(policy, text_of(stated[-1])))

    def _stance(self, policy: Policy, statement: str) -> Stance:
        from personalign.policy.heads import StanceHead as Network

        head = policy.heads[HEAD]
        assert isinstance(head, Network)
        if self._head is not head:
            self._head, self._read = head, {}
        if statement not in self._read:
            self._read[statement] = head.stance(policy, statement)
        return self._read[statement]
