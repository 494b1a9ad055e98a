"""Recall by recency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personalign.contracts import PositiveInt, TextKind
from personalign.memory.log import EventMemory, snippet
from personalign.types import Request, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class Recency(EventMemory):
    """Recalls the last `k` events that carry text, newest first (arXiv 2304.11406, section 3)."""

    needs = ()
    provides = ("state.snippets",)
    paper = "arXiv 2304.11406, section 3"
    node = "preference memory / implicit / user-generated content"

    def __init__(self, *, k: PositiveInt, kinds: list[TextKind]) -> None:
        super().__init__(kinds)
        self._k = k

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        newest = self.texts(request)[: -self._k - 1 : -1]
        return UserState(snippets=tuple(snippet(event) for event in newest))
