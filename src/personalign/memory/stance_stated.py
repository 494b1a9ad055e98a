"""The preference vector that a user declared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personalign.contracts import UserError
from personalign.memory.log import EventMemory
from personalign.types import Event, Request, Stance, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class StanceStated(EventMemory):
    """The stance p^u is the newest one that the user declared, as a whole (survey, section 4.1)."""

    needs = ("events.stance",)
    provides = ("state.stance",)
    paper = "arXiv 2503.17003, section 4.1"
    node = "preference memory / explicit"

    def __init__(self) -> None:
        super().__init__(("stance",))

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        declared = self.before(request)
        return UserState(stance=Stance.of(declared[-1].payload["stance"]) if declared else None)

    def _check(self, event: Event) -> None:
        super()._check(event)
        for dimension, value in event.payload["stance"].items():
            if not (isinstance(value, int | float) and -1 <= value <= 1):
                raise UserError(
                    f"event {event.id!r} of user {event.user!r} declares {dimension} = {value!r}: "
                    "a stance is a number from -1 to 1"
                )
