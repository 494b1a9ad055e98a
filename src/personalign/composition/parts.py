"""All that can be composed: one view for every choice of every group."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalign.composition import home
from personalign.composition.source import ClassView, view
from personalign.contracts import UserError

__all__ = ["ClassView", "Group", "PartView", "catalogue", "groups", "head", "load", "odd", "part", "view"]

PLAIN = (str, int, float)


@dataclass(frozen=True, kw_only=True)
class PartView:
    """One choice of a group: its YAML's head comment and values, and the light view of its class, if any."""

    group: str
    choice: str
    head: str
    defaults: Mapping[str, Any]
    target: str | None = None
    cls_name: str = ""
    doc: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    paper: str = ""
    node: str = ""
    strength: str = ""
    candidates: str = ""


@dataclass(frozen=True)
class Group:
    """An entry of config.yaml's defaults list: `key` is chosen (`reward@guide`), `slot` is where it lands."""

    key: str
    default: str | tuple[str, ...] | None

    @property
    def folder(self) -> str:
        return self.key.partition("@")[0]

    @property
    def slot(self) -> str:
        return self.key.partition("@")[2] or self.key

    @property
    def many(self) -> bool:
        return isinstance(self.default, tuple)


def groups() -> Mapping[str, Group]:
    """What may be chosen, by key, in the order of config.yaml's defaults list."""
    path = home.home() / "conf" / "config.yaml"
    return _groups(path, path.stat().st_mtime_ns)


@cache
def _groups(path: Path, mtime: int) -> dict[str, Group]:
    """`mtime`, here and below, is there for the cache alone: an edited file is read anew."""
    found = {}
    for entry in load(path)["defaults"]:
        if isinstance(entry, dict):
            ((key, value),) = entry.items()
            found[key] = Group(key, tuple(value) if isinstance(value, list) else value)
    return found


def load(path: Path) -> dict[str, Any]:
    """A YAML file as plain data, interpolations unresolved; UserError names file, line and trouble."""
    try:
        mtime = path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return copy.deepcopy(_load(path, mtime))


@cache
def _load(path: Path, mtime: int) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        config = OmegaConf.create(text or "{}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_placed(error.full_key)}{str(error).splitlines()[0]}") from None
    except Exception as error:  # of a tag, such as !!bool, that the value does not fit; some say nothing
        raise UserError(f"{path}: a value that is not of its type {error}".strip().splitlines()[0]) from None
    if not OmegaConf.is_dict(config):
        raise UserError(f"{path}: a mapping of keys to values is expected")
    tree = cast(dict[str, Any], OmegaConf.to_container(config))
    for problem in odd(tree):
        raise UserError(f"{path}: {problem}")
    return tree


def _placed(key: object) -> str:
    return f"{key}: " if key else ""


def odd(value: Any, place: str = "") -> Iterator[str]:
    """The problem of every key and value below `place` that is no plain data, such as !!binary."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, PLAIN):
                yield f"{_placed(place)}the key {key!r} is neither text nor a number"
            yield from odd(item, f"{place}.{key}".strip("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from odd(item, f"{place}.{i}")
    elif value is not None and not isinstance(value, PLAIN):
        yield f"{_placed(place)}a value of type {type(value).__name__} is neither text nor a number"


def head(path: Path) -> str:
    """The comment that a YAML file begins with, without its package line."""
    return _head(path, path.stat().st_mtime_ns)


@cache
def _head(path: Path, mtime: int) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line[1:].strip())
    return "\n".join(lines)


def part(group: str, choice: str, path: Path) -> PartView:
    """The view of one choice; raises UserError where its class cannot be read."""
    defaults = load(path)
    target = defaults.pop("_target_", None)
    common: dict[str, Any] = {"group": group, "choice": choice, "head": head(path), "defaults": defaults}
    if target is None:
        return PartView(**common)
    seen = view(target)
    return PartView(**common, **{f.name: getattr(seen, f.name) for f in fields(ClassView)})


def stamp() -> tuple[tuple[Path, int], ...]:
    """The files of all choices, and when each was last written: another one says that the catalogue is another."""
    folders = dict.fromkeys(group.folder for group in groups().values())
    return tuple((path, path.stat().st_mtime_ns) for folder in folders for path in home.choices(folder).values())


def catalogue(*, strict: bool = True) -> list[PartView]:
    """Every choice of every group, groups in the order of config.yaml, choices by name.

    Raises UserError where one cannot be read; without `strict` that one is left out.
    """
    found = []
    for folder in dict.fromkeys(group.folder for group in groups().values()):
        for choice, path in home.choices(folder).items():
            try:
                found.append(part(folder, choice, path))
            except UserError:
                if strict:
                    raise
    return found
