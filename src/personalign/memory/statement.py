"""A profile in the user's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personalign.contracts import PositiveInt
from personalign.memory.log import EventMemory, text_of
from personalign.types import Request, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class Statement(EventMemory):
    """The profile is the `k` newest preferences that the user stated, oldest first (survey, section 4.1)."""

    needs = ("events.statement",)
    provides = ("state.profile",)
    paper = "arXiv 2503.17003, section 4.1"
    node = "preference memory / explicit"

    def __init__(self, *, k: PositiveInt, separator: str) -> None:
        super().__init__(("statement",))
        self._k, self._separator = k, separator

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        stated = [text_of(event) for event in self.texts(request)][-self._k :]
        return UserState(profile=self._separator.join(stated) or None)
