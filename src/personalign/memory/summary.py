"""A profile that the policy writes from what the user did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from personalign.contracts import PositiveInt, TextKind, UserError
from personalign.memory.log import EventMemory
from personalign.memory.writer import Draft, Profile, Writer
from personalign.runtime.templates import checked, fill
from personalign.types import PAYLOADS, Event, Message, Messages, Request, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

# Of two lines that are joined: what their tokens may be more than those of each alone.
JOINT = 2


class Summary(EventMemory):
    """The profile is what the untouched base makes, greedily, of the user's events: a summary of the user, written
    ahead of the requests (Richardson et al. 2023, arXiv 2310.20081, where a larger model writes it).

    The n-th profile is written when the n-th event has come while there are fewer than `every`, and from then on with
    each `every` further ones; it is made of the newest events of that time that fit into `budget` tokens, and nothing
    of earlier profiles. `profiles` tells of which. User text is plain text to the template; that words talk the
    model round cannot be excluded. Without a policy nobody has a profile. Raises UserError where a line or the
    prompt has a field that nobody fills.
    """

    needs = ("model.weights",)
    provides = ("state.profile",)
    paper = "arXiv 2310.20081"
    node = "preference memory / implicit / user-generated content"

    def __init__(
        self,
        *,
        kinds: list[TextKind],
        lines: dict[TextKind, str],
        prompt: str,
        opening: str,
        every: PositiveInt,
        longest: PositiveInt,
        budget: PositiveInt,
        max_new_tokens: PositiveInt,
        batch_size: PositiveInt,
        cache: str,
    ) -> None:
        super().__init__(kinds)
        if untold := [kind for kind in kinds if kind not in lines]:
            raise UserError(
                f"memory.summary.lines does not say how to tell a {untold[0]}: add it, or drop it from kinds"
            )
        self._lines: dict[str, str] = {kind: checked(lines[kind], (), PAYLOADS[kind]) for kind in kinds}
        self._prompt = checked(prompt, ("events",))
        self._every, self._budget, self._max_new_tokens = every, budget, max_new_tokens
        self._opening, self._longest = opening, longest
        self._writer = Writer(cache, opening, max_new_tokens, batch_size)
        self._written: dict[str, dict[tuple[str, ...], Profile | None]] = {}
        self._policy: Policy | None = None

    def forget(self, user: str) -> None:
        super().forget(user)
        self._written.pop(user, None)
        self._writer.forget(user)

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        return self.recall_all([request], policy)[0]

    def recall_all(self, requests: Sequence[Request], policy: Policy | None) -> list[UserState]:
        """All profiles that are still to be written are written together."""
        if policy is None:
            return [UserState() for _ in requests]
        found = self.profiles(requests, policy)
        return [UserState(profile=one.text or None if one else None) for one in found]

    def profiles(self, requests: Sequence[Request], policy: Policy) -> list[Profile | None]:
        """The profile at the time of each request, with its version and the ids of its events; None without any."""
        if self._policy is not policy:
            self._policy, self._written = policy, {}
        read = [(request.user, self._told(request)) for request in requests]
        keys = [(user, tuple(event.id for event in events)) for user, events in read]
        new = {at: events for at, (_, events) in zip(keys, read, strict=True) if not self._has(*at)}
        drafts = {at: self._draft(at[0], events, policy) for at, events in new.items()}
        wanted = {at: draft for at, draft in drafts.items() if draft is not None}
        written = dict(zip(wanted, self._writer.write(list(wanted.values()), policy), strict=True)) if wanted else {}
        for user, ids in drafts:
            self._written.setdefault(user, {})[ids] = written.get((user, ids))
        return [self._written.get(user, {}).get(ids) for user, ids in keys]

    def _has(self, user: str, ids: tuple[str, ...]) -> bool:
        return not ids or ids in self._written.get(user, {})

    def _told(self, request: Request) -> list[Event]:
        """The events that had come when the profile of that time was written, oldest first."""
        events = self.texts(request)
        count = len(events)
        return events[: count if count < self._every else count - count % self._every]

    def _version(self, count: int) -> int:
        return count if count < self._every else self._every - 1 + count // self._every

    def _draft(self, user: str, events: Sequence[Event], policy: Policy) -> Draft | None:
        """What is asked of the policy; None where no event fits."""
        taken = len(policy.encode(self._asked([]))) + policy.tokens(self._opening)
        room = policy.context - self._max_new_tokens - taken
        chosen = self._fitting(events, min(self._budget, room), policy)
        if not chosen:
            return None
        ids = tuple(event.id for event, _ in chosen)
        return Draft(user, self._version(len(events)), ids, self._asked([line for _, line in chosen]))

    def _fitting(self, events: Sequence[Event], room: int, policy: Policy) -> list[tuple[Event, str]]:
        """The newest events that fit, each whole, with their lines, oldest first; one that does not fit is left out."""
        kept: list[tuple[Event, str]] = []
        for event in reversed(events):
            line = self._line(event)
            size = policy.tokens(line) + JOINT
            if size <= room:
                kept.insert(0, (event, line))
                room -= size
        return kept

    def _line(self, event: Event) -> str:
        """An event on one line of at most `longest` characters, so that no text can look like several."""
        told = {name: str(event.payload.get(name, "")) for name in PAYLOADS[event.kind]}
        return " ".join(fill(self._lines[event.kind], **told).split())[: self._longest]

    def _asked(self, lines: Sequence[str]) -> Messages:
        return (Message("user", fill(self._prompt, events="\n".join(lines))),)
