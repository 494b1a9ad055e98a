"""A sweep by several processes. They are given the resolved runs and share them out; this one tells how it goes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import yaml

from personalign.commands.arguments import Parser
from personalign.commands.board import Board
from personalign.commands.cells import Failure, Turn, open_cells
from personalign.commands.run import carry_out
from personalign.commands.watching import error_of, told
from personalign.composition.sweeps import Cell
from personalign.contracts import UserError
from personalign.runtime import threads
from personalign.runtime.launchers import LAUNCHERS, Place, Start, launcher
from personalign.runtime.lifeline import end_with
from personalign.runtime.logs import quiet
from personalign.runtime.rundir import Taken


def add_options(parser: Parser) -> None:
    """The words that say how many processes there are, and what starts them."""
    parser.add_argument("--launcher", choices=list(LAUNCHERS), help="compute cells side by side, with this package")
    parser.add_argument("--jobs", type=int, metavar="N", help="how many at once; they share the cores of a machine")
    parser.add_argument(
        "--launcher-option", action="append", default=[], metavar="KEY=VALUE",
        help="for submitit's executor or ray.init",
    )  # fmt: skip


class Parallel:
    """Computes cells with a launcher: `compute` returns when every cell that was open is done, failed or given up.

    Raises UserError for options that do not go together, and where the launcher's package is not installed.
    """

    def __init__(self, arguments: Namespace) -> None:
        if arguments.jobs is None or arguments.jobs < 1:
            raise UserError("how many cells at once? --jobs N, of 1 or more")
        self.jobs: int = arguments.jobs
        self.options = dict(_option(text) for text in arguments.launcher_option)
        self.start: Start[dict[str, Failure]] = launcher(arguments.launcher)

    def compute(self, board: Board, cells: Mapping[int, Cell], total: int) -> None:
        runs = {number: board.runs[cell.name] for number, cell in cells.items()}
        for number, cell in cells.items():
            if runs[number].status() != "running":
                with suppress(Taken), runs[number].lock():
                    runs[number].create(cell.cfg)
        turns = [Turn.of(run) for run in runs.values()]
        jobs = min(self.jobs, len(turns))
        share = partial(work, turns, os.getcwd(), os.getpid(), jobs)
        with told(board, cells, total):
            ended = self.start(share, jobs, self.options, board.folder)
        self._take_in(board, cells, [one for one in ended if one is not None])

    def _take_in(self, board: Board, cells: Mapping[int, Cell], ended: Sequence[Mapping[str, Failure]]) -> None:
        failures = {identity: failure for one in ended for identity, failure in one.items()}
        for cell in cells.values():
            run = board.runs[cell.name]
            failure = failures.get(run.identity)
            if failure is None and run.status() == "failed":
                failure = Failure(error_of(run), None)
            if failure is not None:
                board.failed(cell, failure.message)
                print(failure.trace or "", end="", file=sys.stderr, flush=True)


def check(arguments: Namespace) -> None:
    """Raise UserError for words that only a launcher understands."""
    if arguments.jobs is not None or arguments.launcher_option:
        raise UserError(f"--jobs and --launcher-option go with --launcher {'|'.join(LAUNCHERS)}")


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"--launcher-option {text}: write KEY=VALUE")
    return key, yaml.safe_load(value)


def work(turns: Sequence[Turn], folder: str, parent: int, of: int, place: Place) -> dict[str, Failure]:
    """What a worker does, in a process of its own: compute what is open, from its part of the cells on.

    Neighbours share a model and what was trained, so that each worker begins elsewhere. Returns what failed.
    """
    made_by = multiprocessing.parent_process()
    if made_by is not None and made_by.pid == parent:  # jobs that a scheduler holds are the scheduler's
        end_with(parent)
    os.chdir(folder)
    os.environ["PERSONALIGN_QUIET"] = "1"  # lines of several processes cannot be read
    threads.configure(place.beside, place.here, apart=True)
    quiet()
    failures = {}
    for number in open_cells(turns, place.number * len(turns) // of):
        run, starts = turns[number].run, turns[number].starts
        try:
            carry_out(run.config(), starts)
        except Taken:
            continue
        except Exception as error:
            failures[run.identity] = Failure.of(error, traceback.format_exc())
    return failures
