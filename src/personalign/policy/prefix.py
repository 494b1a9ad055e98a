"""Where a user's history stands in a prompt: the one segment that generation plans and alignment trains behind."""

from __future__ import annotations

from personalign.plans import Soft
from personalign.types import UserState

HEAD = "history"


def history_prefix(state: UserState) -> Soft | None:
    """The soft tokens of what memory recalled: their arguments are the request's vector, then the history's, oldest
    first. None for a user without a history, whose prompt is the plain one."""
    return Soft(HEAD, (state.vectors["request"], *state.history)) if state.history else None
