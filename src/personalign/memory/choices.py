"""What users chose over what: the base of the memories that learn from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from personalign.contracts import UserError
from personalign.memory.log import EventMemory
from personalign.runtime import traces
from personalign.types import Event, Message, Request, UserState

if TYPE_CHECKING:
    from torch import Tensor

    from personalign.policy.policy import Policy
    from personalign.policy.reward_heads import RewardHead


class ChoiceMemory(EventMemory):
    """Keeps choices, which say what was rejected."""

    def __init__(self) -> None:
        super().__init__(("choice",))

    def _check(self, event: Event) -> None:
        super()._check(event)
        if "rejected" not in event.payload:
            raise UserError(
                f"event {event.id!r} of user {event.user!r} is a choice without rejected: preferences are learned "
                "from what was chosen over what"
            )


class HeadMemory(ChoiceMemory):
    """A user's vectors, as the policy's reward head `head` works them out of the user's choices.

    What the frozen policy makes of a choice is read once and kept, also in the policy's cache below the user, until the
    user is forgotten, or another head is there. Before the head is trained there is no vector.
    """

    head: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._network: object = None
        self._cache: Path | None = None
        self._read: dict[str, dict[str, Tensor]] = {}

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        if policy is None or self.head not in policy.heads:
            return UserState()
        head, self._cache = cast("RewardHead", policy.heads[self.head]), policy.cache
        if self._network is not head:
            self._network, self._read = head, {}
        events = self.before(request)
        self._take_in(head, policy, request.user, events)
        return self._state(head, request.user, [self._read[request.user][event.id] for event in events])

    @abstractmethod
    def _state(self, head: RewardHead, user: str, choices: Sequence[Tensor]) -> UserState:
        """What these choices of the user say, oldest first: the features of each are [2, width], chosen first."""

    def forget(self, user: str) -> None:
        super().forget(user)
        self._read.pop(user, None)
        if self._cache is not None:
            traces.forget(self._cache, user)

    def _take_in(self, head: RewardHead, policy: Policy, user: str, events: Sequence[Event]) -> None:
        """Read the user's choices that were not yet read, all at once."""
        new = [event for event in events if event.id not in self._read.get(user, {})]
        rows = [head.reader.row(policy, _asked(event), _answers(event), event.id) for event in new]
        features = head.reader.features(policy, rows, "features of choices", user) if new else []
        for event, found in zip(new, features, strict=True):
            self._read.setdefault(user, {})[event.id] = found


def _asked(event: Event) -> tuple[Message, ...]:
    return (Message("user", str(event.payload["prompt"])),)


def _answers(event: Event) -> tuple[str, str]:
    return str(event.payload["chosen"]), str(event.payload["rejected"])
