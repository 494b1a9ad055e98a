"""`personalign validate`: every error of a composition, of a grid, of all that ships, of a data folder."""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from personalign.commands.arguments import CommandLine, split
from personalign.commands.board import check_published
from personalign.composition import home
from personalign.composition.compose import assemble, compose
from personalign.composition.composer import Composer
from personalign.composition.identity import identity, label
from personalign.composition.layers import chosen, from_file, from_overrides
from personalign.composition.parts import catalogue, groups, load
from personalign.composition.sweeps import read
from personalign.composition.validate import IllegalComposition
from personalign.composition.way import PLAN
from personalign.contracts import UserError

EXAMPLES = """
personalign validate memory=bm25 generation=retrieval_prompt    one composition
personalign validate experiments/pad.yaml seed=1                an experiment file, with overrides
personalign validate sweeps/demo.yaml                           every cell of a grid
personalign validate --all                                      all that ships: files, cells, choices
personalign validate my_users/                                  a folder of users, histories, pairs, requests
"""
SWEEP_KEYS = {"rows", "grid", "seeds"}
# A value that ships open; parts that are checked beside one another and need not fit.
NO_MISTAKE = re.compile(r" must be given: |^[\w@]+=\w+ needs ")


def register(line: CommandLine) -> None:
    parser = line.command("validate", "every error at once, before any model is loaded", EXAMPLES, validate)
    parser.add_argument("--all", action="store_true", help="every composition, grid and choice that ships")
    parser.add_words("an experiment, a sweep or a data folder, and overrides (key=value)")


def validate(arguments: Namespace) -> int:
    """Say what is well; raise UserError with all that is not."""
    file, overrides = split(arguments.words)
    if arguments.all:
        if file:
            raise UserError(f"--all takes no file: leave out {file}")
        return _everything(overrides)
    if file and (Path(file).is_dir() or file.endswith(".jsonl")):
        return _data(Path(file), overrides)
    if file and _is_sweep(file):
        sweep = read(file, overrides)
        check_published(sweep)
        for name, reason in sweep.left_out.items():
            print(f"left out: {name}: {reason}")
        print(f"{sweep.path}: {len(sweep.cells)} cells are legal, {len(sweep.left_out)} left out")
        return 0
    cfg = compose(overrides, file)
    print(f"legal: {label(cfg)} (run {identity(cfg)})")
    return 0


def _is_sweep(file: str) -> bool:
    if Path(file).is_file():
        return bool(SWEEP_KEYS & load(Path(file)).keys())
    if file.startswith("sweeps/"):
        return True
    return Path(file).with_suffix("").as_posix() in home.shelf("sweeps")


def _data(path: Path, overrides: Sequence[str]) -> int:
    from personalign.data.jsonl import check

    if overrides:
        raise UserError(f"overrides say nothing about a data folder: leave out {' '.join(overrides)}")
    if not path.exists():
        beside = home.nearest(path.name, (other.name for other in path.parent.glob("*")))
        raise UserError(f"{path}: no such file{beside}")
    folder = path if path.is_dir() else path.parent
    problems = check(folder)
    if problems:
        raise UserError("\n".join(problems))
    print(f"{folder}: every line is well")
    return 0


def _everything(overrides: Sequence[str]) -> int:
    """Check all that ships and count it."""
    counts: Counter[str] = Counter()
    problems: list[str] = []
    composed = Composer()
    # Choices come first: experiments and sweeps are made of them.
    for kind, number, found in chain(
        _choices(overrides, composed), _experiments(overrides, composed), _sweeps(overrides, composed)
    ):
        counts[kind] += number
        problems += found
    problems += _unmet()
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    print("all well: " + ", ".join(f"{number} {kind}" for kind, number in counts.items()))
    return 0


Finding = tuple[str, int, list[str]]


def _experiments(overrides: Sequence[str], composed: Composer) -> Iterator[Finding]:
    for name, path in home.shelf("experiments").items():
        yield "experiments", 1, _problems(overrides, path, composed, f"experiments/{name}")


def _problems(overrides: Sequence[str], path: Path, composed: Composer, place: str) -> list[str]:
    try:
        layers = [from_file(path), from_overrides(overrides)]
        composed.expect([chosen(layers)])
        assemble(layers[:1], layers[1], composed)
    except UserError as error:
        return [f"{place}: {line}" for line in str(error).splitlines()]
    return []


def _sweeps(overrides: Sequence[str], composed: Composer) -> Iterator[Finding]:
    for path in home.shelf("sweeps").values():
        try:
            sweep = read(path, overrides, composed)
            check_published(sweep)
        except UserError as error:
            yield "sweeps", 1, str(error).splitlines()
        else:
            yield "sweeps", 1, []
            yield "cells", len(sweep.cells), []


def _choices(overrides: Sequence[str], composed: Composer) -> Iterator[Finding]:
    """Every choice of every group: one composition checks one choice of each."""
    known = {group: list(home.choices(group.folder)) for group in groups().values()}
    for names in zip_longest(*known.values()):
        lines = [
            f"{group.key}={f'[{name}]' if group.many else name}"
            for group, name in zip(known, names, strict=True)
            if name is not None
        ]
        yield "choices", len(lines), _mistakes([*overrides, *lines], composed)


def _mistakes(overrides: Sequence[str], composed: Composer) -> list[str]:
    """What is wrong with a composition whose parts need not fit, and whose open values need not be given."""
    try:
        line = from_overrides(overrides)
        composed.expect([chosen([line])])
        assemble([], line, composed)
    except IllegalComposition:
        return []
    except UserError as error:
        return [line for line in str(error).splitlines() if not NO_MISTAKE.search(line)]
    return []


def _unmet() -> list[str]:
    """What a choice needs that nothing provides, so that no composition could have it."""
    given = {name for part in catalogue() for name in part.provides}
    given |= {PLAN, *(f"reward.{group.slot}" for group in groups().values() if group.folder == "reward")}
    return [
        f"{part.group}={part.choice} needs {need}, which nothing provides"
        for part in catalogue()
        for need in part.needs
        if need not in given
    ]
