"""Where the shipped compositions lie, and where a user's own are looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from personalign.contracts import UserError

PACKAGE = Path(__file__).resolve().parents[1]


def home() -> Path:
    """The folder that holds conf/, experiments/ and sweeps/: a wheel's package, or the repository's root."""
    return PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]


def homes() -> tuple[Path, ...]:
    """`home()`, then the folders of a user's own parts that PERSONALIGN_PATH names, laid out alike."""
    own = os.environ.get("PERSONALIGN_PATH", "").split(os.pathsep)
    return (home(), *(Path(folder).expanduser().resolve() for folder in own if folder))


def choices(folder: str) -> dict[str, Path]:
    """The YAML file of every choice of a group, by name; the shipped ones win over a user's own."""
    found: dict[str, Path] = {}
    for root in homes():
        for path in sorted((root / "conf" / folder).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def shelf(kind: str) -> dict[str, Path]:
    """What experiments/ or sweeps/ hold, by the path below that folder without its ending."""
    found: dict[str, Path] = {}
    for root in homes():
        for path in sorted((root / kind).rglob("*.yaml")):
            found.setdefault(path.relative_to(root / kind).with_suffix("").as_posix(), path)
    return found


def locate(name: str | Path, kind: str) -> Path:
    """A file by its path, or by its name in `kind` (experiments or sweeps), with or without ending.

    Raises UserError where there is none, naming the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    known = shelf(kind)
    short = Path(name).with_suffix("") if Path(name).suffix in (".yaml", ".yml") else Path(name)
    word = short.as_posix().removeprefix(f"{kind}/")
    if word in known:
        return known[word]
    raise UserError(f"{name}: no such file, nor a name in {kind}/{nearest(word, known)}")


def nearest(word: str, options: Iterable[str]) -> str:
    """'; did you mean a or b?' with the options most like `word`, or else all of them where they are few."""
    known = sorted(set(options))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    tails = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
    if found := list(dict.fromkeys([*tails[:3], *close]))[:3]:
        return f"; did you mean {' or '.join(found)}?"
    return f"; there is {', '.join(known)}" if 0 < len(known) <= 24 else ""
