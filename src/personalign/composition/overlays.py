"""Overlays (scale, debug): values for whatever was chosen, taken where they fit and dropped elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from personalign.composition import home
from personalign.composition.layers import Choice, Setting
from personalign.composition.parts import load
from personalign.composition.schema import slots
from personalign.contracts import UserError

Place = tuple[str, ...]


def overlay(key: str, choices: Mapping[str, Choice], tree: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings of the choice of `key` (scale, debug) that concern the parts of `tree`.

    `alignment.*.steps` is a key of every chosen stage that takes it. Raises UserError for a defaults list.
    """
    name = choices.get(key)
    if not isinstance(name, str):
        return
    path = home.choices(key)[name]
    data = load(path)
    if "defaults" in data:
        raise UserError(f"{path}: an overlay holds values alone, no defaults")
    for place, value in _leaves(data):
        for there in _places(place, tree):
            yield Setting(there, value, f"{path}: {'.'.join(there)}")


def _leaves(data: Mapping[str, Any], above: Place = ()) -> Iterator[tuple[Place, Any]]:
    for key, value in data.items():
        place = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, place)
        else:
            yield place, value


def _places(place: Place, tree: Mapping[str, Any]) -> list[Place]:
    """Where a key goes: nowhere, if it is a part's and no chosen part takes it."""
    group = slots().get(place[0])
    if group is None:
        return [place]
    every = group.many and place[1:2] == ("*",)
    places = [(place[0], choice, *place[2:]) for choice in tree[place[0]]] if every else [place]
    return [there for there in places if _reaches(tree, there[: 3 if group.many else 2])]


def _reaches(tree: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True
