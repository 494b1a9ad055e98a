"""sweep.json, the state of a sweep: where each of its cells stands, as the run folders tell."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from personalign.composition.home import nearest
from personalign.composition.identity import identity
from personalign.composition.sweeps import Cell, Sweep
from personalign.contracts import UserError
from personalign.reporting import records
from personalign.reporting.collect import read_sweep
from personalign.runtime.files import write_atomic
from personalign.runtime.rundir import RunDir

PUBLISHED = TypeAdapter(list[records.Published])


class Board:
    """The cells of a sweep, their run folders, and what failed in this sweep; `folder` holds sweep.json.

    Raises UserError where the published numbers are not as `records.Published` says, and where the folder holds the
    results of another sweep file.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        _check_owner(sweep, folder)
        self.runs = {cell.name: RunDir(cell.cfg.paths.runs, identity(cell.cfg)) for cell in sweep.cells}
        self.errors: dict[str, str] = {}
        check_published(sweep)

    def status(self, cell: Cell) -> str:
        """pending, running, interrupted, done or failed."""
        return "failed" if cell.name in self.errors else self.runs[cell.name].status()

    def failed(self, cell: Cell, message: str) -> None:
        """Note that a cell failed in this sweep, also where it has no run folder yet."""
        self.errors[cell.name] = message

    def write(self) -> None:
        """Write sweep.json, whole or not at all."""
        cells = [self._cell(cell) for cell in self.sweep.cells]
        content: records.Sweep = {
            "title": self.sweep.title,
            "baseline": self.sweep.baseline,
            "runs": os.path.relpath(self.sweep.cells[0].cfg.paths.runs, self.folder),
            "file": os.path.relpath(self.sweep.path, self.folder),
            "cells": cells + [_left_out(name, reason) for name, reason in self.sweep.left_out.items()],
            "published": self.sweep.published,
        }
        write_atomic(self.folder / "sweep.json", json.dumps(content, indent=2) + "\n")

    def _cell(self, cell: Cell) -> records.Cell:
        run = self.runs[cell.name]
        return {
            "row": cell.row or cell.name,
            "overrides": list(cell.overrides),
            "identity": run.identity,
            "status": self.status(cell),
            "error": self.errors.get(cell.name, run.details().get("error")),
            "note": cell.note,
        }


def _left_out(name: str, reason: str) -> records.Cell:
    return {"row": name, "overrides": [], "identity": "", "status": "left out", "error": reason}


def _check_owner(sweep: Sweep, folder: Path) -> None:
    """A folder is named by its sweep file's name alone. Raises UserError where another file of that name, which is
    still there and says something else, has its results in it."""
    try:
        before = read_sweep(folder)
    except UserError:
        return  # a damaged sweep.json is written anew
    if before is None or "file" not in before:
        return
    other = Path(os.path.normpath(folder / before["file"]))
    if other.is_file() and not other.samefile(sweep.path) and other.read_bytes() != sweep.path.read_bytes():
        raise UserError(
            f"{folder} holds the results of {other}, a sweep of the same name as {sweep.path}: rename one of the two "
            "files, or keep the runs of one elsewhere (paths.runs=...)"
        )


def check_published(sweep: Sweep) -> None:
    """Raise UserError with every mistake in the published numbers of a sweep file."""
    try:
        published = PUBLISHED.validate_python(sweep.published or [])
    except ValidationError as error:
        lines = [f"published.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise UserError("\n".join(f"{sweep.path}: {line}" for line in lines)) from None
    rows = {*(cell.row or cell.name for cell in sweep.cells), *sweep.left_out}
    named = [ours for table in published for row in table["rows"] if (ours := row.get("ours"))]
    if lost := [f"{sweep.path}: published: {one} is no row{nearest(one, rows)}" for one in named if one not in rows]:
        raise UserError("\n".join(lost))
