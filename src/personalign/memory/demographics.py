"""A profile of the user's attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personalign.memory.log import EventMemory
from personalign.types import Request, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class Demographics(EventMemory):
    """The profile is one line of the user's attributes, 'name: value' each (survey, section 4.1).

    The newest value of a name counts, and a blank one takes the attribute back. Attributes stand in the order of
    `names`, which also selects them; without `names` all do, by name. Line breaks become blanks.
    """

    needs = ("events.attribute",)
    provides = ("state.profile",)
    paper = "arXiv 2503.17003, section 4.1"
    node = "preference memory / implicit / demographic attributes"

    def __init__(self, *, names: list[str] | None, separator: str) -> None:
        super().__init__(("attribute",))
        self._names, self._separator = names, separator

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        events = self.before(request)
        values = {_line(event.payload["name"]): _line(event.payload["value"]) for event in events}
        names = sorted(values) if self._names is None else self._names
        given = [f"{name}: {values[name]}" for name in names if values.get(name)]
        return UserState(profile=self._separator.join(given) or None)


def _line(value: object) -> str:
    return " ".join(str(value).split())
