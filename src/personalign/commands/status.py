"""`personalign status`: where runs stand, of one folder, of one sweep or of all."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from personalign.commands.arguments import CommandLine
from personalign.commands.places import find, runs_root
from personalign.commands.screen import console
from personalign.composition.identity import label
from personalign.contracts import UserError
from personalign.reporting.collect import UNREADABLE, read_sweep
from personalign.runtime.progress import duration
from personalign.runtime.rundir import RunDir, find_runs

EXAMPLES = """
personalign status                   every run in runs/
personalign status demo              the cells of sweeps/demo.yaml
personalign status 0123456789abcdef  one run, by its name or the beginning of it
"""
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", UNREADABLE: "red"}


@dataclass(frozen=True)
class Line:
    """Where one run stands; `seconds` since it was last started, until it ended; `tuning` of its strength."""

    run: str
    row: str
    status: str
    answers: int
    seconds: float | None
    error: str | None
    tuning: str = ""


def register(line: CommandLine) -> None:
    parser = line.command("status", "where runs and sweeps stand", EXAMPLES, status)
    parser.add_argument("path", nargs="?", metavar="PATH", help="a run, a sweep, or a folder of runs")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")


def status(arguments: Namespace) -> int:
    """Print where each run stands; a run that failed shows its error."""
    folder = find(arguments.path) if arguments.path else runs_root()
    lines = list(_lines(folder))
    if arguments.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return 0
    if lines:
        console().print(_table(lines))
    counts = Counter(line.status for line in lines)
    print(f"{folder}: " + (", ".join(f"{n} {name}" for name, n in counts.items()) or "no runs yet"))
    return 0


def _lines(folder: Path) -> Iterator[Line]:
    """The cells of a sweep in its order, or the runs of a folder, oldest first."""
    sweep = read_sweep(folder)
    if sweep is None:
        yield from (_line(run) for run in find_runs(folder))
        return
    for cell in sweep["cells"]:
        if cell["identity"]:
            yield _line(RunDir(folder / sweep["runs"], cell["identity"]), cell["row"], cell["error"])
        else:
            yield Line("", cell["row"], cell["status"], 0, None, cell["error"])


def _line(run: RunDir, row: str | None = None, error: str | None = None) -> Line:
    """Where a run stands; one whose files are damaged is told as that, beside the others."""
    try:
        details = run.details()
        error = details.get("error") or error
        named = label(run.config()) if row is None else row
        return Line(run.identity, named, run.status(), len(run.responses()), run.seconds(), error, _tuning(run))
    except UserError as damage:
        return Line(run.identity, row or "", UNREADABLE, 0, None, str(damage))


def _tuning(run: RunDir) -> str:
    """Which strength was chosen on validation requests, or how many of them have been tried; '' where none is."""
    if told := (run.record() or {}).get("tuning"):
        return f"{told['key']} = {told['chosen']:g}"
    tried = [line for line in run.tuning() if line["strength"] is not None]
    return f"{len(tried)} strengths tried" if tried else ""


def _table(lines: list[Line]) -> Table:
    table = Table("run", "row", "status", "answers", "time", "", box=None, header_style="dim")
    for line in lines:
        colour = COLOURS.get(line.status, "default")
        took = "" if line.seconds is None else duration(line.seconds)
        error = escape(line.error.splitlines()[0]) if line.error else line.tuning
        shown = f"[{colour}]{line.status}[/]"
        table.add_row(line.run, escape(line.row), shown, str(line.answers), took, error)
    return table
