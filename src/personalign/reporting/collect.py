"""Reads a run folder, a sweep folder or a folder of runs into the rows of one table."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from personalign.contracts import UserError
from personalign.reporting.records import Cell, Published, Record, Sample, Sweep
from personalign.reporting.rows import Row, Run, compared, grouped, settings
from personalign.runtime.files import plain_errors, read_jsonl
from personalign.runtime.rundir import RunDir

T = TypeVar("T")
UNREADABLE = "unreadable"  # a file of the run is damaged, or a newer version's
# Building one takes longer than a thousand checks with it.
RECORD, SAMPLE, SWEEP = TypeAdapter(Record), TypeAdapter(Sample), TypeAdapter(Sweep)


@dataclass(frozen=True)
class Missing:
    """A run that is not in the table, and why: pending, running, interrupted, failed, left out, unreadable."""

    row: str
    overrides: tuple[str, ...]
    status: str
    error: str | None


@dataclass(frozen=True)
class Results:
    """All that a report shows. `level` is the width of the intervals, `tie` the band of win/tie/lose."""

    title: str
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    baseline: str | None
    level: float | None
    tie: float | None
    published: tuple[Published, ...]

    def row(self, name: str | None) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def collect(path: str | Path, baseline: str | None = None) -> Results:
    """Read a run folder, a sweep folder or a folder of runs. `baseline` names another row than the sweep's.

    A run whose files are damaged is told among those that are missing. Raises UserError where nothing can be read, the
    sweep's file is damaged, or the baseline is no row.
    """
    folder = Path(path).expanduser()
    folder = folder.parent if folder.name in ("sweep.json", "record.json") else folder
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder, a sweep folder or a folder of runs")
    sweep = read_sweep(folder)
    found = list(_cells(folder, sweep)) if sweep else [_lone(run) for run in _runs(folder)]
    if not found:
        raise UserError(f"{path} holds no run and no sweep: there is no record.json and no sweep.json in it")
    unreadable = [run.error or "" for run in found if isinstance(run, Missing) and run.status == UNREADABLE]
    if len(unreadable) == len(found):
        raise UserError("\n".join(unreadable))
    named = baseline if baseline is not None or not sweep else sweep["baseline"]
    title = sweep["title"] if sweep else folder.resolve().name
    results = _results(title, found, named, (sweep.get("published") or []) if sweep else [])
    if baseline is not None and results.row(baseline) is None:
        raise UserError(f"baseline {baseline!r} is no row of {path}{_nearest(baseline, results.rows)}")
    return results


def _results(
    title: str, found: Sequence[Run | Missing], baseline: str | None, published: Sequence[Published]
) -> Results:
    rows = compared(grouped([run for run in found if isinstance(run, Run)]), baseline)
    missing = tuple(run for run in found if isinstance(run, Missing))
    told = settings(rows[0].runs[0]) if rows else None
    level, tie = (told[0].level, told[1]) if told else (None, None)
    return Results(title, tuple(rows), missing, baseline, level, tie, tuple(published))


def _cells(folder: Path, sweep: Sweep) -> Iterator[Run | Missing]:
    for cell in sweep["cells"]:
        run = RunDir(folder / sweep["runs"], cell["identity"])
        try:
            yield _finished(run, cell) or _unfinished(run, cell)
        except UserError as error:
            yield Missing(cell["row"], tuple(cell["overrides"]), UNREADABLE, str(error))


def _lone(run: RunDir) -> Run | Missing:
    """A run that no sweep speaks of."""
    try:
        return _finished(run, None) or Missing(run.identity, (), run.status(), run.details().get("error"))
    except UserError as error:
        return Missing(run.identity, (), UNREADABLE, str(error))


def _finished(folder: RunDir, cell: Cell | None) -> Run | None:
    record = folder.record() if folder.identity else None
    if record is None:
        return None
    checked = _checked(RECORD, record, folder.path / "record.json")
    answers = _answers(folder.path / "answers.jsonl")
    if cell is None:
        return Run(checked, answers)
    return Run(checked, answers, cell["row"], tuple(cell["overrides"]), cell.get("note") or "")


def _answers(path: Path) -> list[Sample]:
    """What users were given; none where only the record was kept."""
    return [_checked(SAMPLE, row, path) for row in read_jsonl(path)] if path.is_file() else []


def _unfinished(folder: RunDir, cell: Cell) -> Missing:
    # The run itself knows best: a sweep that was killed still calls its last cell running.
    known = folder.details() if folder.identity else {}
    status = folder.status() if known else cell["status"]
    return Missing(cell["row"], tuple(cell["overrides"]), status, known.get("error") or cell["error"])


def _runs(folder: Path) -> list[RunDir]:
    """The run at a folder, or those in it or in its `runs`, oldest first."""
    places = {
        hit.parent.absolute()
        for below in ("", "*/", "runs/*/")
        for name in ("record.json", "status.json")
        for hit in folder.glob(below + name)
    }
    runs = [RunDir(place.parent, place.name) for place in places]
    return sorted(runs, key=lambda run: (run.created, run.identity))


def read_sweep(folder: Path) -> Sweep | None:
    """What sweep.json of a folder says; None where there is none. Raises UserError where it is damaged."""
    path = folder / "sweep.json"
    if not path.is_file():
        return None
    with plain_errors(path, "read"):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the same sweep again to write it anew") from error
    return _checked(SWEEP, value, path)


def _checked(kind: TypeAdapter[T], value: Any, path: Path) -> T:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; correct it, or run the same command again") from error


def _nearest(name: str, rows: Sequence[Row]) -> str:
    names = [row.name for row in rows]
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names) or 'none yet'}"
