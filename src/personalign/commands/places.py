"""Where results lie: `runs/<identity>/` for runs, `runs/sweeps/<stem>/` for sweeps, and the short names of both."""

from __future__ import annotations

from pathlib import Path

from personalign.composition.compose import compose
from personalign.composition.home import nearest
from personalign.contracts import UserError
from personalign.runtime.rundir import find_runs

SHOWN = 8


def runs_root() -> Path:
    """The folder of run directories of the default composition."""
    return Path(compose().paths.runs)


def sweep_folder(runs: Path, file: Path) -> Path:
    """Where the results of a sweep file are kept."""
    return runs / "sweeps" / file.stem


def find(word: str) -> Path:
    """The folder of a run or a sweep: by path, by a sweep's file or name, or by the beginning of a run's name.

    Raises UserError that names the nearest.
    """
    if Path(word).expanduser().is_dir():
        return Path(word).expanduser()
    root = runs_root()
    sweep = sweep_folder(root, Path(word))
    if sweep.is_dir():
        return sweep
    names = [run.identity for run in find_runs(root)]
    begun = [name for name in names if name.startswith(word)]
    if len(begun) == 1:
        return root / begun[0]
    if begun:
        raise UserError(f"{word} begins the names of {len(begun)} runs in {root}: {', '.join(begun[:SHOWN])}")
    sweeps = [folder.name for folder in root.glob("sweeps/*")]
    raise UserError(f"{word}: no such folder, nor a run or a sweep in {root}{nearest(word, [*sweeps, *names])}")
