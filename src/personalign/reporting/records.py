"""The files that reports are read from: what a run and a sweep leave behind, as typed dictionaries.

<run>/record.json               Record
<run>/answers.jsonl             one Sample a line: what users were given, with its true reward
<sweep>/sweep.json              Sweep
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class Metric(TypedDict):
    """A `Figure` as it is written."""

    value: float
    low: float
    high: float
    n: int
    users: int
    better: Literal["higher", "lower", "none"]


class Person(TypedDict, total=False):
    """What is shown of a user beside the answers: what they said they prefer, their true stance."""

    statement: str
    stance: dict[str, float]


class Point(TypedDict):
    """Where a run with rounds stood after one: the events that a user who is asked had given, the figures."""

    round: int
    events: float
    metrics: dict[str, Metric]


class Record(TypedDict):
    """One finished run. `name` is the row's name in tables, the same under every seed."""

    schema_version: int
    name: str
    identity: str
    seed: int
    config: dict[str, Any]
    metrics: dict[str, Metric]
    cost: dict[str, Any]
    provenance: dict[str, Any]
    # For example "oracle": the guide is the truth.
    flags: list[str]
    # The content hash of what was read.
    data_hash: NotRequired[str]
    # By user name.
    users: NotRequired[dict[str, Person]]
    # In runs whose strength was chosen on validation requests (see `tuning`): which, and what each came to.
    tuning: NotRequired[dict[str, Any]]
    # In runs that asked their users: before the first round, and after each.
    rounds: NotRequired[list[Point]]


class Truth(TypedDict):
    """A `Score` as it is written."""

    total: float
    dimensions: dict[str, float]


class Sample(TypedDict):
    """The answer that a user was given to a request."""

    request: str
    user: str
    prompt: str
    text: str
    truth: Truth | None


class Cell(TypedDict):
    """One run of a sweep. Cells of one row that differ by their seed share `row`.

    `status` is the run's, or "left out" with the reason as `error`; `note` is shown under the tables.
    """

    row: str
    overrides: list[str]
    identity: str
    status: str
    error: str | None
    note: NotRequired[str | None]


class PublishedRow(TypedDict):
    """A published row: its name there, the row here that stands beside it, its numbers by column.

    With a `user`, what stands beside it is how many of their answers win, tie and lose against the baseline's.
    """

    name: str
    ours: NotRequired[str | None]
    user: NotRequired[str | None]
    values: dict[str, float]


class Published(TypedDict):
    """Numbers from elsewhere. `columns` names, for each of their columns, the metric of ours beside it or null."""

    title: str
    source: str
    note: NotRequired[str | None]
    columns: dict[str, str | None]
    rows: list[PublishedRow]


class Sweep(TypedDict):
    """A grid of runs. `runs` is the folder of run folders, `file` the sweep file, both relative to the sweep's own
    folder."""

    title: str
    baseline: str | None
    runs: str
    file: NotRequired[str]
    cells: list[Cell]
    published: NotRequired[list[Published] | None]
