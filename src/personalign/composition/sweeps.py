"""Grids: a sweep file's rows, crossed with its grid and seeds, as compositions in order.

    title: PAD against prompts          base: experiments/pad.yaml, or a list of overrides
    rows: {name: [overrides]}           grid: {key: [values]}, crossed with the rows
    beside: {name: [overrides]}         rows that stand before the others, and are not crossed with the grid
    seeds: [0, 1]                       baseline: the row that others are compared with
    published: numbers of the paper with their source, handed on as they are
    notes: {row: what readers of the table should know of it}

An override that ends in .yaml is an experiment file.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict, ValidationError

from personalign.composition.compose import assemble
from personalign.composition.composer import Composer
from personalign.composition.home import locate, nearest
from personalign.composition.layers import Layer, chosen, from_file, from_overrides
from personalign.composition.parts import load
from personalign.composition.schema import describe, slots
from personalign.composition.validate import IllegalComposition
from personalign.contracts import Seed, UserError

WORDS = ("true", "false", "null", "inf", "nan")


@dataclass(frozen=True)
class Cell:
    """One composition of a sweep. `row` is its name without the seed: cells of one row are averaged."""

    name: str
    overrides: tuple[str, ...]
    cfg: DictConfig
    row: str
    note: str | None = None


@dataclass
class Sweep:
    """A read sweep file: its cells in order, and why some are left out, by name."""

    path: Path
    title: str
    baseline: str | None
    published: Any
    cells: list[Cell] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    title: str = ""
    base: str | list[str] = []
    rows: dict[str, list[str]] = {"": []}
    grid: dict[str, list[Any]] = {}
    beside: dict[str, list[str]] = {}
    seeds: list[Seed] = []
    baseline: str | None = None
    published: Any = None
    notes: dict[str, str] = {}


def cells(path: str | Path) -> list[Cell]:
    """The cells of a sweep file that may run; `read` says which were left out, and why."""
    return read(path).cells


def read(path: str | Path, overrides: Sequence[str] = (), composed: Composer | None = None) -> Sweep:
    """A sweep file, by path or by its name in sweeps/, with overrides that every cell takes last.

    A cell whose parts do not fit together is left out with its reason. Raises UserError with all mistakes of
    all cells, and where no cell is left.
    """
    where = locate(path, "sweeps")
    file = _file(where)
    sweep = Sweep(where, file.title or where.stem, file.baseline, file.published)
    mistakes: dict[str, str] = {}
    composed = composed or Composer()
    points = []
    seen: set[str] = set()
    for name, row, own, lines in _lines(file, tuple(overrides)):
        if name in seen:
            twice = f"two cells are called {name!r}: name every seed and every value of the grid once"
            _blame(mistakes, str(where), UserError(twice))
        seen.add(name)
        try:
            points.append((name, row, file.notes.get(own), lines, _layers(lines)))
        except UserError as error:
            _blame(mistakes, f"{where}: {name}", error)
    composed.expect(chosen(layers) for *_, layers in points)
    for name, row, note, lines, (*files, line) in points:
        try:
            sweep.cells.append(Cell(name, lines, assemble(files, line, composed), row, note))
        except IllegalComposition as error:
            sweep.left_out[name] = str(error)
        except UserError as error:
            _blame(mistakes, f"{where}: {name}", error)
    if mistakes:
        raise UserError("\n".join(mistakes.values()))
    _one_place(sweep)
    if not sweep.cells:
        raise UserError("\n".join([f"{where}: no cell is legal", *dict.fromkeys(sweep.left_out.values())]))
    return sweep


def _one_place(sweep: Sweep) -> None:
    """A sweep's table is read from one folder of runs. Raises UserError where a cell would keep its run elsewhere."""
    first = sweep.cells[0] if sweep.cells else None
    for cell in sweep.cells:
        if first and Path(cell.cfg.paths.runs) != Path(first.cfg.paths.runs):
            raise UserError(
                f"{sweep.path}: {cell.name!r} has paths.runs={cell.cfg.paths.runs}, and {first.name!r} has "
                f"paths.runs={first.cfg.paths.runs}: the runs of a sweep lie in one folder; set paths.runs on the "
                "command line or in base, not in a row or the grid"
            )


def _blame(mistakes: dict[str, str], place: str, error: UserError) -> None:
    """Note each line of an error once, with the first place that it is met in."""
    for line in str(error).splitlines():
        mistakes.setdefault(line, f"{place}: {line}")


def _file(path: Path) -> _File:
    data = load(path)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        lines = describe(error, data, known=_File.model_fields)
        raise UserError("\n".join(f"{path}: {line}" for line in lines)) from None
    named = [("baseline", file.baseline)] if file.baseline is not None else []
    for key, row in [*named, *(("notes", row) for row in file.notes)]:
        if row not in (known := {**file.beside, **file.rows}):
            raise UserError(f"{path}: {key} {row} is no row{nearest(row, known)}")
    if twice := file.beside.keys() & file.rows.keys():
        raise UserError(f"{path}: {min(twice)} stands in rows and beside them: give one of them another name")
    return file


def _lines(file: _File, last: tuple[str, ...]) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(name, row with its point of the grid, row, overrides) of every cell: rows outermost, then the grid's keys as
    written, then seeds."""
    base = [file.base] if isinstance(file.base, str) else file.base
    crossed = itertools.product(file.rows.items(), itertools.product(*file.grid.values()))
    points = [*((one, ()) for one in file.beside.items()), *crossed]
    for (row, own), values in points:
        point = [f"{key}={_text(value)}" for key, value in zip(file.grid, values, strict=False)]
        told = [_told(key, value) for key, value in zip(file.grid, values, strict=False)]
        label = ", ".join([*([row] if row else []), *told])
        for end in [[f"seed={seed}"] for seed in file.seeds] or [[]]:
            named = [f"name={_text(label)}"] if label else []
            yield ", ".join([label, *end]), label, row, (*base, *named, *own, *point, *end, *last)


def _layers(lines: Sequence[str]) -> list[Layer]:
    """Of the experiment files, then of all overrides."""
    files = [line for line in lines if line.endswith((".yaml", ".yml")) and "=" not in line]
    layers = [from_file(locate(file, "experiments")) for file in files]
    return [*layers, from_overrides(line for line in lines if line not in files)]


def _told(key: str, value: Any) -> str:
    """A point's coordinate as readers see it: choices of a part by their names alone."""
    names = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if key not in {group.key for group in slots().values()}:
        return f"{key}={_text(value)}"
    return f"no {key}" if names in ([], ["none"]) else " + ".join(names)


def _text(value: Any) -> str:
    """A value in Hydra's grammar, quoted where it must be."""
    if isinstance(value, list):
        return f"[{','.join(_text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w/.-]*", value) and value.lower() not in WORDS
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
