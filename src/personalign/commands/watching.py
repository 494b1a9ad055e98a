"""How a sweep goes that other processes compute: one line when a cell begins and one when it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from personalign.commands.board import Board
from personalign.composition.sweeps import Cell
from personalign.runtime.progress import duration
from personalign.runtime.rundir import RunDir

LOOK = 0.5  # seconds between two looks at the runs


@contextmanager
def told(board: Board, cells: Mapping[int, Cell], total: int) -> Iterator[None]:
    """While the body runs, say where each cell stands when that changes, and keep sweep.json up to date."""
    end = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, cells, total, end), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def error_of(run: RunDir) -> str:
    """What a failed run tells, as its user would have been told."""
    return str(run.details().get("error")).removeprefix("UserError: ")


def _watch(board: Board, cells: Mapping[int, Cell], total: int, end: threading.Event) -> None:
    runs = {number: board.runs[cell.name] for number, cell in cells.items()}
    seen = {number: _standing(run) for number, run in runs.items()}
    board.write()
    last = False
    while not last:
        last = end.wait(LOOK)
        now = {number: _standing(run) for number, run in runs.items()}
        for number in [number for number in cells if now[number] != seen[number]]:
            print(f"[{number}/{total}] {cells[number].name}{_words(runs[number])}", flush=True)
        if now != seen:
            board.write()
        seen = now


def _standing(run: RunDir) -> tuple[str, int]:
    return run.status(), run.starts


def _words(run: RunDir) -> str:
    """How a cell ended; nothing for one that has just begun."""
    status = run.status()
    if status == "done":
        return f": done in {duration(run.seconds() or 0.0)}"
    if status == "failed":
        return f": failed: {error_of(run)}"
    return ": its process was killed" if status == "interrupted" else ""
