"""The seven tasks of LaMP: what a user wrote before tells how the answer to one more request should be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from personalign.contracts import Data, PositiveInt, UserError
from personalign.data.readers import Reader, Row, nearest
from personalign.data.sources import find_files
from personalign.data.splits import normalise
from personalign.types import Event, Message, Pair, Request

REMEDY = (
    "download the questions and outputs of one task from lamp-benchmark.github.io and give their folder as data.path"
)
# Fewer words than these may recur by chance.
RUN = 5
DATE = re.compile(r"\d{1,12}(-\d{1,2}){0,2}")
TAGS = re.compile(r"\[([^\[\]]+)\]")


class Task(NamedTuple):
    """A past item's text and what came of it, by their fields; how both are told (the benchmark's own prompts);
    the labels of a classification, () where the request lists them, None where a text is asked for."""

    text: str
    result: str | None
    told: str
    labels: tuple[str, ...] | None


TASKS = {
    1: Task("title", None, "{title}", ("[1]", "[2]")),
    2: Task("description", "tag", 'the tag for the movie: "{description}" is "{tag}"', ()),
    3: Task("text", "score", '{score} is the score for "{text}"', ("1", "2", "3", "4", "5")),
    4: Task("text", "title", '"{title}" is the title for "{text}"', None),
    5: Task("abstract", "title", '"{title}" is the title for "{abstract}"', None),
    6: Task("text", "title", '"{title}" is the title for "{text}"', None),
    7: Task("text", None, "{text}", None),
}


class Table(NamedTuple):
    """All that was read, by user."""

    requests: Mapping[str, Request]
    events: Mapping[str, tuple[Event, ...]]
    fingerprint: str


class LaMP(Data):
    """Each row is a user: the profile's items are texts of its past, and its one request has a reference.

    In tasks 1 to 3 the reference is one of the request's `choices`, in tasks 4 to 7 a text. Items are in order of
    their dates where they have some (the time-based split), else in that of the file. An item that would give
    the target away is left out: one that has the text asked for, and one whose own text stands in the request.
    """

    provides = ("events.text",)
    paper = "arXiv 2304.11406"
    node = "benchmarks / personalized"

    def __init__(
        self,
        *,
        path: str,
        task: Literal[1, 2, 3, 4, 5, 6, 7],
        split: Literal["train", "dev", "test"],
        limit: PositiveInt | None,
    ) -> None:
        self._path, self._number, self._task = path, task, TASKS[task]
        self._split, self._limit = split, limit

    def users(self) -> Sequence[str]:
        return tuple(self._table.requests)

    def events(self, user: str) -> Sequence[Event]:
        return self._table.events[user]

    def requests(self, split: str) -> Sequence[Request]:
        return tuple(self._table.requests.values()) if split == "test" else ()

    def pairs(self, split: str) -> Sequence[Pair]:
        return ()

    def fingerprint(self) -> str:
        return self._table.fingerprint

    @cached_property
    def _table(self) -> Table:
        files = {p.name: p for p in find_files(self._path, None, on_hub=f"*{self._split}_*.json", remedy=REMEDY)}
        reader = Reader()
        golds = self._golds(reader, self._named(files, f"{self._split}_outputs.json"))
        requests: dict[str, Request] = {}
        events: dict[str, tuple[Event, ...]] = {}
        seen: set[str] = set()
        for row in reader.rows(self._named(files, f"{self._split}_questions.json")):
            request, past = self._taken(row, golds, seen)
            seen.add(request.id)
            if self._limit is None or len(requests) < self._limit:
                requests[request.id], events[request.id] = request, past
        settings = {"task": self._number, "split": self._split, "limit": self._limit}
        return Table(requests, events, reader.finish(settings))

    def _named(self, files: Mapping[str, Path], name: str) -> Path:
        if name not in files:
            raise UserError(f"data.path: {self._path} holds no {name}{nearest(name, files)}; {REMEDY}")
        return files[name]

    def _golds(self, reader: Reader, path: Path) -> dict[str, str]:
        """The targets by id, from {"task": ..., "golds": [{"id": ..., "output": ...}, ...]}."""
        golds: dict[str, str] = {}
        for whole in reader.rows(path):
            named = re.findall(r"\d", whole.text("task"))
            if named and int(named[0]) != self._number:
                whole.wrong("task", f"is {whole.text('task')!r}, and data.task is {self._number}")
            for row in whole.rows("golds"):
                id, row = _identified(row, golds)
                golds[id] = row.label("output").strip()
        return golds

    def _taken(self, row: Row, golds: Mapping[str, str], known: set[str]) -> tuple[Request, tuple[Event, ...]]:
        """The request of a row and the events of its profile."""
        id, row = _identified(row, known)
        if id and id not in golds:
            row.wrong("id", f"{self._split}_outputs.json has no output for it")
        prompt, target = row.text("input"), golds.get(id, "")
        choices = self._choices(row, prompt)
        if target and choices and target not in choices:
            row.wrong("input", f"its output {target!r} is none of the labels {', '.join(choices)}")
        request = Request(id=id, user=id, messages=(Message("user", prompt),), references=(target,), choices=choices)
        dated = sorted(((_date(item), self._said(item)) for item in row.rows("profile")), key=lambda pair: pair[0])
        said = self._kept(prompt, target, (fields for _, fields in dated))
        return request, tuple(_event(id, n, self._task.told.format_map(fields)) for n, fields in enumerate(said))

    def _choices(self, row: Row, prompt: str) -> tuple[str, ...]:
        """The labels to choose from; task 2 lists its own, as in `tags: [comedy, dark comedy]`."""
        if self._task.labels is None or self._task.labels:
            return self._task.labels or ()
        found = TAGS.search(prompt)
        labels = tuple(tag.strip() for tag in found[1].split(",")) if found else ()
        if prompt and (len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels)):
            row.wrong("input", "expected different tags to choose from, as in [comedy, dark comedy]")
            return ()
        return labels

    def _said(self, item: Row) -> dict[str, str]:
        """The fields that are told; {} for an item where one of them is blank."""
        names = [name for name in (self._task.text, self._task.result) if name]
        if any(isinstance(said := item.values.get(name), str) and not said.strip() for name in names):
            return {}
        return {name: item.label(name) for name in names}

    def _kept(self, prompt: str, target: str, items: Iterable[dict[str, str]]) -> list[dict[str, str]]:
        """The items that tell nothing of the target."""
        asked, wanted = normalise(prompt), normalise(target) if self._task.labels is None else ""
        kept = []
        for fields in filter(None, items):
            words = {name: normalise(value) for name, value in fields.items()}
            same = wanted != "" and words[self._task.result or self._task.text] == wanted
            told = _holds(asked, words[self._task.text]) or any(_holds(text, wanted) for text in words.values())
            if not same and not told:
                kept.append(fields)
        return kept


def _holds(text: str, run: str) -> bool:
    """Whether a text has all of a run of words that is too long to recur by chance."""
    return run.count(" ") >= RUN - 1 and f" {run} " in f" {text} "


def _identified(row: Row, known: Collection[str]) -> tuple[str, Row]:
    """The id of a row, and the row with its id in what is said of it; reports an id that was there before."""
    id = row.label("id")
    if id and id in known:
        row.wrong("id", f"{id!r} was there before")
    return id, replace(row, place=f"{row.place}, id {id}") if id else row


def _date(item: Row) -> tuple[int, ...]:
    """Year, month and day as far as they are given, such as 2012 or 2012-05-31; () without a date."""
    if not item.has("date"):
        return ()
    said = item.label("date")
    if DATE.fullmatch(said):
        return tuple(map(int, said.split("-")))
    if said:
        item.wrong("date", f"{said[:40]!r} is no date such as 2012 or 2012-05-31")
    return ()


def _event(user: str, n: int, text: str) -> Event:
    return Event(id=f"{user}/{n}", user=user, time=float(n), kind="text", payload={"text": text}, source="lamp")
