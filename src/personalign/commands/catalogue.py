"""`personalign ls`: what can be composed, by group and by the survey's taxonomy."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.markup import escape
from rich.table import Table

from personalign.commands.arguments import CommandLine
from personalign.commands.screen import console
from personalign.composition.home import nearest, shelf
from personalign.composition.parts import PartView, catalogue, head
from personalign.contracts import UserError

EXAMPLES = """
personalign ls                 every choice of every group, the experiments and the sweeps
personalign ls memory          one group: what each choice is, its paper, what it needs and provides
personalign ls sweeps          the grids that ship
personalign ls --json          the same for scripts
"""
FILES = ("experiments", "sweeps")
COLUMNS = ("choice", "what", "node", "paper", "needs", "provides")
TITLES = {"what": "what it is", "node": "node of the survey's taxonomy"}


@dataclass(frozen=True)
class Row:
    """One line of the listing: a choice of a group, an experiment or a sweep."""

    group: str
    choice: str
    what: str
    node: str = ""
    paper: str = ""
    needs: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()


def register(line: CommandLine) -> None:
    parser = line.command("ls", "what can be composed, with paper, needs and provides", EXAMPLES, ls)
    parser.add_argument("group", nargs="?", metavar="GROUP", help="one group, or experiments, or sweeps")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of tables")


def ls(arguments: Namespace) -> int:
    """Print the catalogue, or one group of it."""
    rows = [_of_part(part) for part in catalogue()]
    rows += [Row(kind, name, _first(head(path))) for kind in FILES for name, path in shelf(kind).items()]
    groups = list(dict.fromkeys(row.group for row in rows))
    if arguments.group is not None:
        if arguments.group not in groups:
            raise UserError(f"there is no group {arguments.group!r}{nearest(arguments.group, groups)}")
        rows = [row for row in rows if row.group == arguments.group]
    if arguments.json:
        print(json.dumps([vars(row) for row in rows], indent=2))
        return 0
    for group, members in groupby(rows, key=lambda row: row.group):
        console().print(_table(group, sorted(members, key=lambda row: (row.node, row.choice))))
    return 0


def _of_part(part: PartView) -> Row:
    """Where a choice says more than its class (a variant of a loss), its YAML's first line is shown."""
    what = _first(part.head) or part.doc
    return Row(part.group, part.choice, what, part.node, part.paper, part.needs, part.provides)


def _first(text: str) -> str:
    return text.partition("\n")[0].strip()


def _table(group: str, rows: Sequence[Row]) -> Table:
    """One group in the order of the taxonomy; a column that would be empty is left out."""
    shown = [column for column in COLUMNS if any(_cell(row, column) for row in rows)]
    table = Table(title=f"{group} ({len(rows)})", title_justify="left", box=None, header_style="dim")
    for column in shown:
        table.add_column(TITLES.get(column, column), no_wrap=column == "choice")
    for row in rows:
        table.add_row(*(escape(_cell(row, column)) for column in shown))
    return table


def _cell(row: Row, column: str) -> str:
    value = getattr(row, column)
    return value if isinstance(value, str) else " ".join(value)
