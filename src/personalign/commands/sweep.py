"""`personalign sweep`: a grid of runs, one after the other; the same command again does what is missing."""

from __future__ import annotations

import time
import traceback
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from personalign.commands.arguments import CommandLine, split
from personalign.commands.board import Board
from personalign.commands.places import sweep_folder
from personalign.commands.report import publish
from personalign.commands.run import compute
from personalign.composition.home import shelf
from personalign.composition.sweeps import Cell, Sweep, read
from personalign.contracts import UserError
from personalign.runtime.progress import duration
from personalign.runtime.ranks import started

EXAMPLES = """
personalign sweep sweeps/demo.yaml                    the demo: a table, a figure, an HTML report
personalign sweep sweeps/demo.yaml --dry-run          what would be computed
personalign sweep sweeps/demo.yaml scale=smoke        every cell with an override
personalign sweep my_grid.yaml paths.runs=/big/disk   a grid of your own, results elsewhere
Runs that are done are never computed again; a cell that fails is recorded and does not stop the rest.
"""


def register(line: CommandLine) -> None:
    parser = line.command("sweep", "run a grid, or go on with it, and report it", EXAMPLES, sweep)
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed and stop")
    parser.add_words("a sweep file, and overrides (key=value) that every cell takes")


def sweep(arguments: Namespace) -> int:
    """Compute the cells that are not done, then show the table; 1 when a cell failed."""
    if started() is not None:
        raise UserError("a sweep starts the ranks of its cells itself: run it once, without torchrun or srun")
    file, overrides = split(arguments.words)
    if file is None:
        raise UserError(f"which sweep? there is {', '.join(f'sweeps/{name}.yaml' for name in shelf('sweeps'))}")
    plan = read(file, overrides)
    board = Board(plan, sweep_folder(Path(plan.cells[0].cfg.paths.runs), plan.path))
    todo = [cell for cell in plan.cells if board.status(cell) != "done"]
    _announce(plan, board, todo)
    if arguments.dry_run:
        return 0
    try:
        for number, cell in enumerate(todo, start=1):
            board.write()
            print(f"[{number}/{len(todo)}] {cell.name}", flush=True)
            print(f"[{number}/{len(todo)}] {_compute(cell, board)}", flush=True)
    finally:
        board.write()
    publish(board.folder)
    return int(bool(board.errors))


def _announce(plan: Sweep, board: Board, todo: Sequence[Cell]) -> None:
    left_out = f", {len(plan.left_out)} left out" if plan.left_out else ""
    total = len(plan.cells)
    print(f"{plan.title}: {total} cells, {total - len(todo)} done, {len(todo)} to compute{left_out}")
    for name, reason in plan.left_out.items():
        print(f"  left out  {name}: {' '.join(reason.split())}")
    for cell in todo:
        print(f"  {board.status(cell):<9} {cell.name}")


def _compute(cell: Cell, board: Board) -> str:
    """Compute one cell and say how it ended; what fails is put on the board."""
    if board.status(cell) == "running":
        return "another process is computing it"
    started = time.monotonic()
    try:
        compute(cell.cfg)
    except Exception as error:
        if board.status(cell) == "running":
            return "another process has begun to compute it"
        if not isinstance(error, UserError):
            traceback.print_exc()
        board.failed(cell, error)
        return f"failed: {error}"
    return f"done in {duration(time.monotonic() - started)}"
