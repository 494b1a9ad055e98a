"""The event store: users' events in one SQLite file that processes share, and that can forget a user to the byte."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import stat
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from personalign.contracts import UserError
from personalign.store.database import connect, database_errors, patiently
from personalign.types import PAYLOADS, Event


class Totals(NamedTuple):
    """How much a store holds; `bytes` counts the file and what SQLite keeps beside it."""

    users: int
    events: int
    bytes: int


class Store:
    """A user's events by time, then id. `events` is the one way to them, and it takes the user they belong to.

    Any number of processes may read and write at once; what one call adds is there whole or not at all.
    Raises UserError where the file cannot be used; `create` makes one where there is none.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._db = connect(self.path, create)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with database_errors(self.path, "close"):
            self._db.close()

    def add(self, events: Iterable[Event]) -> int:
        """Take events in, all of them or none, and return how many are new: an event that is known changes nothing.

        Raises UserError for an id that is known with another content, and for an event that cannot be kept.
        """
        known: dict[str, list[Event]] = {}
        new = 0
        with self._writing("add events to"):
            for event in events:
                if self._insert(event):
                    new += 1
                else:
                    known.setdefault(event.user, []).append(event)
            for user, again in known.items():
                self._compare(user, again)
            if new:
                self._revise()
        return new

    def events(self, user: str) -> list[Event]:
        """All events of one user, oldest first; [] for a user that is not known."""
        with database_errors(self.path, "read"):
            rows = self._db.execute(
                "SELECT id, user, time, kind, payload, source FROM events WHERE user = ? ORDER BY time, id", (user,)
            ).fetchall()
        return [
            Event(id=id, user=owner, time=time, kind=kind, payload=json.loads(payload), source=source)
            for id, owner, time, kind, payload, source in rows
        ]

    def users(self) -> list[str]:
        """Who has events here, in the order of their names."""
        with database_errors(self.path, "read"):
            return [user for (user,) in self._db.execute("SELECT DISTINCT user FROM events ORDER BY user")]

    def forget(self, user: str) -> int:
        """Remove a user to the last byte from the database and from the files beside it; return how many events went.

        The whole file is written anew, since a page that was split may keep a copy of what it once held.
        Raises UserError when another process keeps the old bytes from being overwritten: then forget again.
        """
        with self._writing("forget a user in"):
            gone = self._db.execute("DELETE FROM events WHERE user = ?", (user,)).rowcount
            if gone:
                self._revise()
        try:
            self._overwrite()
        except UserError as error:
            raise UserError(
                f"{error}\nthe user's events are deleted, but their bytes may remain: forget again"
            ) from error
        return gone

    def totals(self) -> Totals:
        with database_errors(self.path, "read"):
            users, events = self._db.execute("SELECT count(DISTINCT user), count(*) FROM events").fetchone()
        files = [self.path, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))]
        return Totals(users, events, sum(stat(file).st_size for file in files if file.exists()))

    def revision(self) -> str:
        """Equal as long as the content is: it goes into the identity of the runs that read it."""
        with database_errors(self.path, "read"):
            return str(self._db.execute("SELECT token FROM revision").fetchone()[0])

    @contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        """One transaction: written when the body ends, undone when it raises."""
        with database_errors(self.path, doing):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise

    def _insert(self, event: Event) -> bool:
        """Whether the event's id was new."""
        rows = self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", _row(event))
        return rows.rowcount == 1

    def _compare(self, user: str, events: list[Event]) -> None:
        """Raise UserError unless the user has these very events; what others have under their ids stays unseen."""
        kept = {event.id: event for event in self.events(user)}
        for event in events:
            if kept.get(event.id) != event:
                raise UserError(
                    f"{self.path}: event {event.id!r} was there before with another content: "
                    "give every event an id of its own"
                )

    def _revise(self) -> None:
        self._db.execute("UPDATE revision SET token = lower(hex(randomblob(8)))")

    def _overwrite(self) -> None:
        """Write the file anew without what was deleted, and cut the write-ahead log to nothing."""
        with database_errors(self.path, "overwrite what was deleted in"):
            self._db.execute("VACUUM")
            done = patiently(self._cut_log)
        if not done:
            raise UserError(f"cannot overwrite what was deleted in {self.path}: another process still holds it")

    def _cut_log(self) -> bool:
        return bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)


def _row(event: Event) -> tuple[str, str, float, str, str, str]:
    """Raises UserError for an event that would not come back as it is."""
    payload = _json(event.payload)
    texts = (event.id, event.user, event.source, payload)
    if not payload or _is_broken("".join(texts)):
        raise _unfit(event, "its texts must be whole Unicode and its payload plain JSON")
    if not event.id.strip() or not event.user.strip():
        raise _unfit(event, "it needs an id and a user")
    if not math.isfinite(event.time):
        raise _unfit(event, "its time must be a finite number")
    if event.kind not in PAYLOADS:
        raise _unfit(event, f"its kind must be one of {', '.join(PAYLOADS)}")
    if set(event.payload) != set(PAYLOADS[event.kind]):
        raise _unfit(event, f"the payload of a {event.kind} is {', '.join(PAYLOADS[event.kind])}")
    return (event.id, event.user, float(event.time), event.kind, payload, event.source)


def _json(payload: Mapping[str, Any]) -> str:
    """The payload as JSON; '' where reading that would give something else."""
    try:
        text = json.dumps(dict(payload), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return ""
    return text if json.loads(text) == payload else ""


def _is_broken(text: str) -> bool:
    """Whether half of a surrogate pair is in it, which no file in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _unfit(event: Event, why: str) -> UserError:
    return UserError(f"event {event.id!r} cannot be kept: {why}")
