"""`personalign sweep`: a grid of runs, one after the other or side by side; again, it does what is missing."""

from __future__ import annotations

import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from personalign.commands import parallel
from personalign.commands.arguments import CommandLine, split
from personalign.commands.board import Board
from personalign.commands.cells import Failure, Turn, open_cells
from personalign.commands.places import sweep_folder
from personalign.commands.report import publish
from personalign.commands.run import compute
from personalign.composition.home import shelf
from personalign.composition.sweeps import Cell, Sweep, read
from personalign.contracts import UserError
from personalign.runtime.progress import duration
from personalign.runtime.ranks import started
from personalign.runtime.rundir import Taken

EXAMPLES = """
personalign sweep sweeps/demo.yaml                    the demo: a table, a figure, an HTML report
personalign sweep sweeps/demo.yaml --dry-run          what would be computed
personalign sweep sweeps/demo.yaml scale=smoke        every cell with an override
personalign sweep my_grid.yaml paths.runs=/big/disk   a grid of your own, results elsewhere
personalign sweep my_grid.yaml --launcher joblib --jobs 4
personalign sweep my_grid.yaml --launcher submitit --jobs 8 --launcher-option slurm_partition=gpu
Runs that are done are never computed again; a cell that fails is recorded and does not stop the rest. A cell that
another process computes is passed over, so that the same sweep may be started in several places.
"""
Compute = Callable[[Board, Mapping[int, Cell], int], None]


def register(line: CommandLine) -> None:
    parser = line.command("sweep", "run a grid, or go on with it, and report it", EXAMPLES, sweep)
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed and stop")
    parallel.add_options(parser)
    parser.add_words("a sweep file, and overrides (key=value) that every cell takes")


def sweep(arguments: Namespace) -> int:
    """Compute the cells that are not done, then show the table; 1 when a cell failed or was given up."""
    if started() is not None:
        raise UserError("a sweep starts the ranks of its cells itself: run it once, without torchrun or srun")
    file, overrides = split(arguments.words)
    if file is None:
        raise UserError(f"which sweep? there is {', '.join(f'sweeps/{name}.yaml' for name in shelf('sweeps'))}")
    way = _way(arguments)
    plan = read(file, overrides)
    for cell in plan.cells:
        cell.cfg.logger.group = cell.cfg.logger.group or plan.path.stem
    board = Board(plan, sweep_folder(Path(plan.cells[0].cfg.paths.runs), plan.path))
    todo = [cell for cell in plan.cells if board.status(cell) != "done"]
    _announce(plan, board, todo)
    if arguments.dry_run:
        return 0
    try:
        _until_nothing_new(board, todo, way)
    finally:
        board.write()
    publish(board.folder)
    return int(any(board.status(cell) not in ("done", "running") for cell in plan.cells))


def _way(arguments: Namespace) -> Compute:
    if arguments.launcher is not None:
        return parallel.Parallel(arguments).compute
    parallel.check(arguments)
    return _here


def _announce(plan: Sweep, board: Board, todo: Sequence[Cell]) -> None:
    left_out = f", {len(plan.left_out)} left out" if plan.left_out else ""
    total = len(plan.cells)
    print(f"{plan.title}: {total} cells, {total - len(todo)} done, {len(todo)} to compute{left_out}")
    for name, reason in plan.left_out.items():
        print(f"  left out  {name}: {' '.join(reason.split())}")
    for cell in todo:
        print(f"  {board.status(cell):<9} {cell.name}")


def _until_nothing_new(board: Board, todo: Sequence[Cell], way: Compute) -> None:
    """Compute the cells; those whose process was killed come again, last, as long as others are got done."""
    before, left = len(todo) + 1, dict(enumerate(todo, start=1))
    while left and len(left) < before:
        turns = {number: Turn.of(board.runs[cell.name]) for number, cell in left.items()}
        way(board, left, len(todo))
        killed = {n: cell for n, cell in left.items() if board.status(cell) == "interrupted"}
        fresh = {n: cell for n, cell in left.items() if n not in killed and _is_open(board, cell, turns[n])}
        before, left = len(left), {**fresh, **killed}
    for number, cell in left.items():
        print(f"[{number}/{len(todo)}] {cell.name}: not done, its process was killed; the same command goes on")


def _is_open(board: Board, cell: Cell, turn: Turn) -> bool:
    return cell.name not in board.errors and turn.standing() == "open"


def _here(board: Board, cells: Mapping[int, Cell], total: int) -> None:
    """One after the other in this process, which keeps the model loaded."""
    numbers = list(cells)
    turns = [Turn.of(board.runs[cell.name]) for cell in cells.values()]
    for i in open_cells(turns):
        number, cell = numbers[i], cells[numbers[i]]
        board.write()
        print(f"[{number}/{total}] {cell.name}", flush=True)
        print(f"[{number}/{total}] {_compute(cell, turns[i], board)}", flush=True)
    for number, cell in cells.items():
        if board.status(cell) == "running":
            print(f"[{number}/{total}] another process is computing it", flush=True)


def _compute(cell: Cell, turn: Turn, board: Board) -> str:
    """Compute one cell and say how it ended; what fails is put on the board."""
    started = time.monotonic()
    try:
        compute(cell.cfg, turn.starts)
    except Taken:
        return "another process has begun to compute it"
    except Exception as error:
        failure = Failure.of(error, traceback.format_exc())
        print(failure.trace or "", end="", file=sys.stderr, flush=True)
        board.failed(cell, failure.message)
        return f"failed: {failure.message}"
    if board.runs[cell.name].details()["pid"] != os.getpid():
        return "another process has done it"
    return f"done in {duration(time.monotonic() - started)}"
