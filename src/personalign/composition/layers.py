"""What a user asks for, on a command line or in an experiment file: choices of groups, values of keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from personalign.composition.home import choices, nearest
from personalign.composition.parts import Group, groups, load
from personalign.contracts import UserError

Choice = str | tuple[str, ...] | None
Mode = Literal["set", "add", "delete"]
MODES: dict[OverrideType, Mode] = {OverrideType.ADD: "add", OverrideType.DEL: "delete"}


@dataclass(frozen=True)
class Setting:
    """One value for one key; `where` is what the user wrote, or in which file."""

    path: tuple[str, ...]
    value: Any
    where: str
    mode: Mode = "set"


@dataclass
class Layer:
    """Choices by group key, settings in their order, and what was wrong with either."""

    choices: dict[str, Choice] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


def from_overrides(lines: Iterable[str]) -> Layer:
    """The layer of a command line in Hydra's grammar: `memory=[stance_stated,bm25] seed=1`."""
    layer = Layer()
    for line in lines:
        try:
            _take(layer, _parse(line), line)
        except UserError as error:
            layer.problems.append(str(error))
    return layer


@lru_cache(maxsize=4096)
def _parse(line: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(line)
    except HydraException as error:
        raise UserError(f"{line}: not of the form key=value ({str(error).splitlines()[0]})") from None
    if override.is_sweep_override():
        raise UserError(f"{line}: one value is expected; several belong in a sweep file's grid")
    return override


def _take(layer: Layer, override: Override, line: str) -> None:
    key, package = override.key_or_group, override.package
    if package:
        key = f"{key}@{package}"
    known = groups()
    if key in known:
        _check_prefix(override, known[key], line)
        _choose(layer, known[key], override.value(), line)
    elif twins := [k for k, g in known.items() if key in (g.folder, g.slot)]:
        raise UserError(f"{line}: write {' or '.join(f'{twin}=...' for twin in twins)}")
    elif package or "/" in key:
        raise UserError(f"{line}: no group {key}{nearest(key, known)}")
    else:
        mode = MODES.get(override.type, "set")
        layer.settings.append(Setting(tuple(key.split(".")), override.value(), line, mode))


def _check_prefix(override: Override, group: Group, line: str) -> None:
    if override.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
        raise UserError(f"{line}: {group.key} is a group already, write it without +")
    if override.type is OverrideType.DEL:
        raise UserError(f"{line}: write {group.key}={'null' if group.default is None else 'none'}")


def _choose(layer: Layer, group: Group, value: Any, where: str) -> None:
    """Note a choice; an unknown one is a problem, and its group is marked, so that it causes no others."""
    names = value if isinstance(value, list | tuple) and group.many else [value]
    if value is None and group.default is None:
        layer.choices[group.key] = None
        return
    known = choices(group.folder)
    wrong = [name for name in names if not isinstance(name, str) or name not in known]
    for name in wrong:
        layer.problems.append(f"{where}: {group.folder} has no choice {name}{nearest(str(name), known)}")
    if wrong:
        layer.unknown.add(group.slot)
    elif "none" in names and len(names) > 1:
        layer.problems.append(f"{where}: none stands alone")
    elif len(set(names)) < len(names):
        layer.problems.append(f"{where}: a choice is named twice")
    else:
        layer.choices[group.key] = (tuple(names) or ("none",)) if group.many else names[0]


def from_file(path: Path) -> Layer:
    """The layer of an experiment file; raises UserError where it is no YAML mapping."""
    layer = Layer()
    data = load(path)
    defaults = data.pop("defaults", [])
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        if entry != "_self_":
            _override_entry(layer, entry, path)
    layer.settings += [Setting((str(k),), value, f"{path}: {k}") for k, value in data.items()]
    return layer


def _override_entry(layer: Layer, entry: Any, path: Path) -> None:
    """One `- override /memory: [bm25]` of a defaults list."""
    known = groups()
    text, value = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
    word, _, key = str(text).partition(" ")
    key = key.strip().removeprefix("/")
    if word != "override" or not isinstance(entry, dict):
        layer.problems.append(f"{path}: defaults: {text}: write '- override /group: choice'")
    elif key not in known:
        layer.problems.append(f"{path}: defaults: no group {key}{nearest(key, known)}")
    else:
        _choose(layer, known[key], value, f"{path}: {key}")


def chosen(layers: Sequence[Layer]) -> dict[str, Choice]:
    """The choice of every group: config.yaml's, or what the last layer that speaks of it says."""
    found: dict[str, Choice] = {key: group.default for key, group in groups().items()}
    for layer in layers:
        found.update(layer.choices)
    return found
