"""PrefEval: preferences that users state, and questions that tempt a model to forget them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from personalign.contracts import Data, PositiveInt
from personalign.data.readers import Reader, Row
from personalign.data.sources import find_files
from personalign.data.splits import digest
from personalign.types import Event, Message, Pair, Request

OPTIONS = "classification_task_options"
REMEDY = (
    "download benchmark_dataset/explicit_preference or benchmark_dataset/mcq_options of "
    "github.com/amazon-science/PrefEval and give that folder as data.path"
)


class Table(NamedTuple):
    """All that was read: what each user prefers, and requests by id."""

    statements: Mapping[str, str]
    requests: Mapping[str, Request]
    fingerprint: str


class PrefEval(Data):
    """A user is a preference, which it states before it asks the questions that go with it, all in the split test.

    Rows with options are multiple choice: the first of them is the one that follows the preference, as the files
    have it (`Request.choices`, `Request.references`); their order plays no part, since no prompt shows them.
    Rows that come twice, as one topic does in the release, count once.
    """

    provides = ("events.statement",)
    paper = "arXiv 2502.09597"
    node = "benchmarks / personalized"

    def __init__(self, *, path: str, files: list[str] | None, limit: PositiveInt | None) -> None:
        self._path, self._files, self._limit = path, files, limit

    def users(self) -> Sequence[str]:
        return tuple(self._table.statements)

    def events(self, user: str) -> Sequence[Event]:
        said = {"text": self._table.statements[user]}
        return [Event(id=f"{user}/preference", user=user, time=0.0, kind="statement", payload=said, source="prefeval")]

    def requests(self, split: str) -> Sequence[Request]:
        return tuple(self._table.requests.values()) if split == "test" else ()

    def pairs(self, split: str) -> Sequence[Pair]:
        return ()

    def fingerprint(self) -> str:
        return self._table.fingerprint

    @cached_property
    def _table(self) -> Table:
        reader = Reader()
        statements: dict[str, str] = {}
        requests: dict[str, Request] = {}
        of_topic: dict[str, set[str]] = {}
        seen: set[str] = set()
        for path in find_files(self._path, self._files, on_hub="*explicit_preference*", remedy=REMEDY):
            for row in reader.rows(path):
                preference, request = _taken(row, path)
                topic = of_topic.setdefault(request.context["topic"], set())
                if request.id not in seen and (self._limit is None or len(topic) < self._limit):
                    topic.add(request.id)
                    statements[request.user], requests[request.id] = preference, request
                seen.add(request.id)
        return Table(statements, requests, reader.finish({"limit": self._limit}))


def _taken(row: Row, path: Path) -> tuple[str, Request]:
    """What the user of a row prefers, and what it asks."""
    if row.has("conversation"):
        row.wrong("conversation", "tells the preference between the lines, and is not read here: "
                  "use explicit_preference or mcq_options")  # fmt: skip
    topic = row.text("topic") if row.has("topic") else path.stem
    topic = topic.removesuffix(" copy")  # the release has one topic's file twice, under such a name
    preference, question = row.text("preference"), row.text("question")
    options = row.options(OPTIONS) if row.has(OPTIONS) else ()
    user = digest(preference)
    request = Request(
        id=f"{user}/{digest(question, *options)}",
        user=user,
        messages=(Message("user", question),),
        time=1.0,
        references=options[:1],
        choices=options,
        context={"topic": topic},
    )
    return preference, request
