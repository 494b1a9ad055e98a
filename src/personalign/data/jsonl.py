"""Anybody's own data, in up to four files of JSON lines; docs/data.md describes every line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import TypeVar

from personalign.contracts import Data, Fraction, PositiveInt, Seed, UserError
from personalign.data.jsonl_rows import FILES, History, Tables, to_row
from personalign.data.readers import Reader, nearest, refuse, siblings
from personalign.data.splits import check_fractions, check_splits, split_of
from personalign.store.store import Store
from personalign.types import EVENT_KINDS, Event, Pair, Request, Split, UserState

T = TypeVar("T", Request, Pair)

LISTED_BY_CHECK = 1000


class Jsonl(Data):
    """Users, histories, requests and pairs from users.jsonl, events.jsonl, requests.jsonl and pairs.jsonl.

    Histories may come from an event store instead: of those users whom the files name, and of no others.
    Without requests.jsonl the pairs' prompts are what is asked. Lines that name no split are split by their
    words. `provides` names what such files may hold; `require` raises UserError for what these do not.
    """

    provides = (
        "events.text",
        "events.choice",
        "events.rating",
        "events.statement",
        "events.stance",
        "events.attribute",
        "pairs",
        "labels",
        "ratings",
        "truth",
        "prompts",
    )
    paper = "arXiv 2503.17003, section 3"
    node = "objectives / individual preferences"

    def __init__(
        self,
        *,
        path: str | None,
        users: str | None,
        events: str | None,
        requests: str | None,
        pairs: str | None,
        store: str | None,
        validation: Fraction,
        test: Fraction,
        seed: Seed,
        limit: PositiveInt | None,
    ) -> None:
        check_fractions(validation, test)
        if events and store:
            raise UserError("data.events and data.store: give one of the two (personalign memory import joins them)")
        self._path, self._store = path, store
        self._given = {"users": users, "events": events, "requests": requests, "pairs": pairs}
        self._validation, self._test, self._seed, self._limit = validation, test, seed, limit

    def users(self) -> Sequence[str]:
        return tuple(self._tables.users)

    def events(self, user: str) -> Sequence[Event]:
        return self._history.get(user, ())

    def requests(self, split: str) -> Sequence[Request]:
        pairs = self._tables.pairs.values()
        asked = self._tables.requests or {pair.request.id: pair.request for pair in pairs}
        return self._of(split, asked.values())

    def pairs(self, split: str) -> Sequence[Pair]:
        """Raises UserError for training pairs where there is no pairs.jsonl."""
        if split == "train":
            self.require(("pairs",))
        return self._of(split, self._tables.pairs.values())

    def fingerprint(self) -> str:
        return self._read[1]

    def truth(self, request: Request) -> UserState | None:
        """The stance under `truth` in users.jsonl; None for a user without."""
        stance = self._tables.users.get(request.user)
        return UserState(stance=stance) if stance else None

    def require(self, names: Sequence[str]) -> None:
        tables, events = self._tables, self._tables.events.values()
        kinds = {event.kind for event in events}
        lacks = {f"events.{kind}": f"events of kind {kind!r}" for kind in EVENT_KINDS if kind not in kinds}
        if not tables.pairs:
            lacks["pairs"] = "pairs.jsonl"
        if not self.requests("train"):
            lacks["prompts"] = "requests of split train"
        if not all(pair.labels for pair in tables.pairs.values()) or not tables.pairs:
            lacks["labels"] = "labels on every line of pairs.jsonl"
        if not all(pair.ratings for pair in tables.pairs.values()) or not tables.pairs:
            lacks["ratings"] = "ratings on every line of pairs.jsonl"
        if not all(tables.users.values()):
            lacks["truth"] = "truth for every user in users.jsonl"
        refuse(names, lacks, self._path or "the data")

    def _of(self, split: str, items: Iterable[T]) -> tuple[T, ...]:
        """The first `limit` items of each user in a split."""
        seen: Counter[str] = Counter()
        kept = []
        for item in items:
            request = item.request if isinstance(item, Pair) else item
            if request.split == split:
                seen[request.user] += 1
                if self._limit is None or seen[request.user] <= self._limit:
                    kept.append(item)
        return tuple(kept)

    @property
    def _tables(self) -> Tables:
        return self._read[0]

    @cached_property
    def _history(self) -> Mapping[str, tuple[Event, ...]]:
        history: dict[str, list[Event]] = {}
        for event in sorted(self._tables.events.values(), key=lambda event: (event.time, event.id)):
            history.setdefault(event.user, []).append(event)
        return {user: tuple(events) for user, events in history.items()}

    @cached_property
    def _read(self) -> tuple[Tables, str]:
        reader = Reader()
        with Store(self._store) if self._store else nullcontext() as store:
            tables = _loaded(reader, self._path, self._given, self._split, store.events if store else None)
        fractions = {"validation": self._validation, "test": self._test}
        kept = {"events": [to_row(event) for event in tables.events.values()]} if self._store else {}
        fingerprint = reader.finish({**fractions, "seed": self._seed, "limit": self._limit, **kept})
        if not tables.splits_given:
            asked = [*tables.requests.values(), *(pair.request for pair in tables.pairs.values())]
            check_splits({r.split for r in asked}, fractions, len({r.messages for r in asked}))
        return tables, fingerprint

    def _split(self, said: str) -> Split:
        return split_of(said, validation=self._validation, test=self._test, seed=self._seed)


def check(path: str | Path) -> list[str]:
    """Read all files of such a folder; every problem by file, line and field, [] when there is none."""
    reader = Reader(listed=LISTED_BY_CHECK)
    _loaded(reader, str(path), {}, _no_split, None)
    return reader.found()


def read_events(path: str | Path) -> list[Event]:
    """The events of one file for a store. Raises UserError with every problem by file, line and field."""
    reader = Reader()
    tables = Tables(reader, _no_split)
    tables.read({"events": Path(expanduser(path))})
    if tables.events and not tables.times_given:
        reader.report(f'{path}, field "time": no line has one; a store needs them, to order the events of many files')
    reader.finish({})
    return list(tables.events.values())


def _no_split(said: str) -> Split:
    return "train"


def _loaded(
    reader: Reader,
    folder: str | None,
    given: Mapping[str, str | None],
    split: Callable[[str], Split],
    history: History | None,
) -> Tables:
    paths = {name: Path(expanduser(path)) for name, path in given.items() if path}
    if folder is not None:
        found = _inside(reader, Path(expanduser(folder)))
        paths = {name: path for name, path in found.items() if not (history and name == "events")} | paths
    if not paths and not reader.problems:
        named = ", ".join(f"{name}.jsonl" for name in FILES)
        reader.report(f"{folder or 'data.path is not set'}: there is none of {named}; see docs/data.md")
    elif paths and "requests" not in paths and "pairs" not in paths:
        reader.report(f"{folder or 'data'}: nothing is asked: add requests.jsonl or pairs.jsonl")
    tables = Tables(reader, split, history)
    tables.read(paths)
    return tables


def _inside(reader: Reader, folder: Path) -> dict[str, Path]:
    """The files in a folder by name; a name that is nearly one of them is reported."""
    try:
        inside = {path.name: path for path in folder.iterdir()}
    except FileNotFoundError:
        reader.report(f"{folder}: no such folder{nearest(folder.name, siblings(folder), few=0)}")
        return {}
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reader.report(f"{folder}: cannot be read as a folder: {getattr(error, 'strerror', None) or error}")
        return {}
    found = {name: inside[f"{name}.jsonl"] for name in FILES if f"{name}.jsonl" in inside}
    absent = [f"{name}.jsonl" for name in FILES if name not in found]
    for name in sorted(inside):
        if close := get_close_matches(name, absent, cutoff=0.8):
            reader.report(f"{folder / name}: is not read; did you mean {close[0]!r}?")
    return found
