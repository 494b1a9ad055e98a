"""`personalign ls`: what can be composed, by group and by the survey's taxonomy."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from rich.markup import escape
from rich.table import Table

from personalign.commands.arguments import CommandLine
from personalign.commands.screen import console
from personalign.commands.taxonomy import show
from personalign.composition.home import nearest, shelf
from personalign.composition.parts import PartView, catalogue, head
from personalign.contracts import UserError

EXAMPLES = """
personalign ls                 every choice of every group, the experiments and the sweeps
personalign ls memory          one group: what each choice is, its paper, what it needs and provides
personalign ls sweeps          the grids that ship
personalign ls --taxonomy      the survey's tree, and what is here of each node
personalign ls --json          the same for scripts
"""
FILES = ("experiments", "sweeps")


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
    strength: str = ""


def register(line: CommandLine) -> None:
    parser = line.command("ls", "what can be composed, with paper, needs and provides", EXAMPLES, ls)
    parser.add_argument("group", nargs="?", metavar="GROUP", help="one group, or experiments, or sweeps")
    parser.add_argument("--taxonomy", action="store_true", help="by the nodes of the survey's figure 4")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of tables")


def ls(arguments: Namespace) -> int:
    """Print the catalogue, or one group of it."""
    parts = catalogue()
    rows = [_of_part(part) for part in parts]
    rows += [Row(kind, name, _first(head(path))) for kind in FILES for name, path in shelf(kind).items()]
    groups = list(dict.fromkeys(row.group for row in rows))
    if arguments.group is not None:
        if arguments.group not in groups:
            raise UserError(f"there is no group {arguments.group!r}{nearest(arguments.group, groups)}")
        rows = [row for row in rows if row.group == arguments.group]
        parts = [part for part in parts if part.group == arguments.group]
    if arguments.taxonomy:
        show(parts, arguments.json)
        return 0
    if arguments.json:
        print(json.dumps([vars(row) for row in rows], indent=2))
        return 0
    screen = console()
    for group, members in groupby(rows, key=lambda row: row.group):
        ordered = sorted(members, key=lambda row: (row.node, row.choice))
        screen.print(f"[bold]{group}[/] ({len(ordered)})", _table(ordered), sep="\n")
    return 0


def _of_part(part: PartView) -> Row:
    """Where a choice says more than its class (a variant of a loss), its YAML's first line is shown."""
    what = _first(part.head) or part.doc
    return Row(part.group, part.choice, what, part.node, part.paper, part.needs, part.provides, part.strength)


def _first(comment: str) -> str:
    """The first sentence of a head comment, which may run over several lines."""
    lines = takewhile(lambda line: "personalign " not in line, comment.splitlines())
    return re.split(r"(?<=\.)\s", " ".join(line.strip() for line in lines), maxsplit=1)[0]


def _table(rows: Sequence[Row]) -> Table:
    """A line or two for each choice, under its node of the taxonomy; it reads well in narrow terminals too."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for node, members in groupby(rows, key=lambda row: row.node):
        if node:
            table.add_row("", f"[italic]{escape(node)}:[/]")
        for row in members:
            table.add_row(f"  {row.choice}", escape(row.what))
            if facts := _facts(row):
                table.add_row("", f"[dim]{escape(facts)}[/]")
    return table


def _facts(row: Row) -> str:
    """Its paper, what it needs and provides, the key of its strength, as far as there is something to say."""
    named = {"needs": row.needs, "provides": row.provides, "strength": (row.strength,) if row.strength else ()}
    said = [f"{name} {' '.join(words)}" for name, words in named.items() if words]
    return " | ".join([*([row.paper] if row.paper else []), *said])
