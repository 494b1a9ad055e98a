"""`personalign report`: the tables, figures and page of what has been run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from personalign.commands.arguments import CommandLine
from personalign.commands.places import find
from personalign.commands.screen import console
from personalign.reporting.collect import collect
from personalign.reporting.report import FORMATS
from personalign.reporting.report import report as write
from personalign.reporting.terminal import show

EXAMPLES = """
personalign report demo                                       everything, for sweeps/demo.yaml
personalign report runs/sweeps/demo --format html             one self-contained page
personalign report runs/0123456789abcdef --format csv         one run, for a spreadsheet
personalign report runs --baseline base                       all runs, compared with one row
The table is printed; the files are written into the folder and their paths printed.
"""


def register(line: CommandLine) -> None:
    parser = line.command("report", "tables and figures of a sweep or of runs", EXAMPLES, report)
    parser.add_argument("path", metavar="PATH", help="a sweep, a run, or a folder of runs")
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="all", help="which files; all by default")
    parser.add_argument("--baseline", metavar="ROW", help="the row that others are compared with")


def report(arguments: Namespace) -> int:
    """Write the files and print the table."""
    formats = FORMATS if arguments.format == "all" else [arguments.format]
    publish(find(arguments.path), formats, arguments.baseline)
    return 0


def publish(folder: Path, formats: Sequence[str] = FORMATS, baseline: str | None = None) -> None:
    """Write the report's files, print the table and their paths."""
    files = write(folder, formats, baseline)
    show(collect(folder, baseline), files, console())
