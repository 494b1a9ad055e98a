"""The rows of a table: runs of one composition under several seeds become one, compared with the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from personalign.contracts import UserError
from personalign.evaluation.statistics import Bootstrap, Comparison, Key, across_seeds, compare
from personalign.reporting.records import Metric, Record, Sample
from personalign.results import Figure
from personalign.runtime.files import content_hash

SETTINGS = ("resamples", "level", "few_users", "bootstrap_seed", "tie")


@dataclass(frozen=True)
class Run:
    """One finished run and its answers; from a sweep also its row, its overrides and what is said of it."""

    record: Record
    answers: list[Sample]
    row: str | None = None
    overrides: tuple[str, ...] = ()
    note: str = ""

    @property
    def seed(self) -> int:
        return self.record["seed"]


@dataclass(frozen=True)
class Stand:
    """A row after a number of rounds: the events that a user has given, the figures over its runs."""

    round: int
    events: float
    metrics: Mapping[str, Figure]


@dataclass(frozen=True)
class Row:
    """One row: its runs in order of their seeds, its figures over them, how it fares against the baseline."""

    name: str
    runs: tuple[Run, ...]
    metrics: Mapping[str, Figure]
    against: Comparison | None = None
    curve: tuple[Stand, ...] = ()

    @property
    def flags(self) -> list[str]:
        return self.runs[0].record["flags"]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def note(self) -> str:
        return self.runs[0].note


def grouped(runs: Sequence[Run]) -> list[Row]:
    """One row for the runs of one row of a sweep, or for runs whose configs differ in nothing but the seed.

    Rows keep the order of their first runs. Two of one name are told apart by their first run's identity.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.row, "") if run.row is not None else (run.record["name"], _but_seed(run))
        groups.setdefault(key, []).append(run)
    names = [name for name, _ in groups]
    return [
        _row(name if names.count(name) == 1 else f"{name} ({group[0].record['identity'][:6]})", group)
        for (name, _), group in groups.items()
    ]


def _but_seed(run: Run) -> str:
    return content_hash({key: value for key, value in run.record["config"].items() if key != "seed"})


def settings(run: Run) -> tuple[Bootstrap, float] | None:
    """How the run's own evaluation draws intervals and calls ties; None where it states no such thing."""
    config = run.record["config"].get("evaluation") or {}
    if not config.keys() >= set(SETTINGS):
        return None
    resamples, level, few_users, seed, tie = (config[key] for key in SETTINGS)
    return Bootstrap(resamples=resamples, level=level, few_users=few_users, seed=seed), tie


def _row(name: str, runs: Sequence[Run]) -> Row:
    runs = sorted(runs, key=lambda run: run.seed)
    points = zip(*(run.record.get("rounds", []) for run in runs), strict=False)
    curve = [
        Stand(some[0]["round"], some[0]["events"], _joint(name, runs, [point["metrics"] for point in some]))
        for some in points
    ]
    return Row(name, tuple(runs), _joint(name, runs, [run.record["metrics"] for run in runs]), curve=tuple(curve))


def _joint(name: str, runs: Sequence[Run], metrics: Sequence[Mapping[str, Metric]]) -> dict[str, Figure]:
    """The figures of a lone run, or those that all have over the seeds."""
    each = [{key: Figure(**value) for key, value in one.items()} for one in metrics]
    if len(runs) == 1:
        return each[0]
    told = settings(runs[0])
    if told is None:
        raise UserError(f"the seeds of {name!r} cannot be averaged: their evaluation states no level")
    shared = [key for key in each[0] if all(key in other for other in each)]
    return {key: across_seeds([one[key] for one in each], told[0].level) for key in shared}


def compared(rows: Sequence[Row], baseline: str | None) -> list[Row]:
    """The rows, each but the baseline with its win/tie/lose and the figure `reward_difference`.

    Rewards are paired by user, request and seed over the seeds that both have; when they share none, each is
    averaged over its seeds first.
    """
    base = next((row for row in rows if row.name == baseline), None)
    told = settings(base.runs[0]) if base else None
    if base is None or told is None:
        return list(rows)
    return [row if row is base else _against(row, base, *told) for row in rows]


def _against(row: Row, base: Row, how: Bootstrap, tie: float) -> Row:
    seeds = set(row.seeds) & set(base.seeds)
    against = compare(_rewards(row, seeds), _rewards(base, seeds), tie=tie, how=how)
    if against is None:
        return row
    return replace(row, metrics={**row.metrics, "reward_difference": against.difference}, against=against)


def _rewards(row: Row, seeds: set[int]) -> dict[Key, float]:
    rewards: dict[Key, list[float]] = {}
    for run in row.runs:
        if seeds and run.seed not in seeds:
            continue
        for answer in run.answers:
            if truth := answer["truth"]:
                seed = (str(run.seed),) if seeds else ()
                key = (answer["user"], answer["request"], *seed)
                rewards.setdefault(key, []).append(truth["total"])
    return {key: sum(values) / len(values) for key, values in rewards.items()}
