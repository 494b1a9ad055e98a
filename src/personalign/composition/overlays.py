"""Overlays (scale, debug): values for whatever was chosen, taken where they fit and dropped elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from personalign.composition import home
from personalign.composition.layers import Choice, Setting
from personalign.composition.parts import load, view
from personalign.composition.schema import slots
from personalign.contracts import UserError


def overlay(key: str, choices: Mapping[str, Choice]) -> list[Setting]:
    """The settings of an overlay group's choice (scale, debug), leaf by leaf."""
    name = choices.get(key)
    if not isinstance(name, str):
        return []
    path = home.choices(key)[name]
    data = load(path)
    if "defaults" in data:
        raise UserError(f"{path}: an overlay holds values alone, no defaults")
    return [Setting(place, value, f"{path}: {'.'.join(place)}") for place, value in _leaves(data)]


def _leaves(data: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in data.items():
        place = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, place)
        else:
            yield place, value


def fit(tree: dict[str, Any], settings: Sequence[Setting]) -> None:
    """Take back what an overlay says of parts that were not chosen, or of keys that the chosen lack."""
    for setting in settings:
        group = slots().get(setting.path[0])
        depth = 3 if group and group.many else 2
        if group is None or len(setting.path) < depth:
            continue
        *above, key = setting.path[:depth]
        node = tree[above[0]] if len(above) == 1 else tree[above[0]].get(above[1], {})
        if "_target_" not in node and group.many:
            tree[above[0]].pop(above[1], None)
        elif key not in (view(node["_target_"]).params if node.get("_target_") else {}):
            node.pop(key, None)


def reaches(tree: Any, path: Sequence[str]) -> bool:
    """Whether there is a value at `path`."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True
