"""Many compositions for a few calls of Hydra: parts' choices do not depend on one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from personalign.composition import home
from personalign.composition.compose import Choices, compose_choices
from personalign.composition.layers import Choice
from personalign.composition.parts import groups
from personalign.composition.schema import OVERLAYS
from personalign.contracts import UserError

Picked = tuple[str, Choice]


class Composer:
    """What `compose_choices` returns, put together from what Hydra made of each choice by itself, once; of a group that
    holds several, too.

    Choices of different groups that are expected together are composed in one call.
    """

    def __init__(self) -> None:
        self._base: dict[str, Any] | None = None
        self._nodes: dict[Picked, Any] = {}

    def __call__(self, homes: tuple[Path, ...], choices: Choices) -> dict[str, Any]:
        """Raises UserError for a broken YAML."""
        if self._base is None:
            self._base = compose_choices(homes, ())
        return {**self._base, **{groups()[key].slot: self._node(homes, key, v) for key, v in _others(choices)}}

    def _node(self, homes: tuple[Path, ...], key: str, value: Choice) -> Any:
        for picked in _singly(key, value):
            if picked not in self._nodes:
                self._compose(homes, (picked,))
        found = [self._nodes[picked] for picked in _singly(key, value)]
        return {name: part for node in found for name, part in node.items()} if len(found) > 1 else found[0]

    def expect(self, wanted: Iterable[Mapping[str, Choice]]) -> None:
        """Compose what these compositions choose; a choice that is broken is told when it is asked for."""
        new: dict[str, dict[Choice, None]] = {}
        for choices in wanted:
            for picked in _others(tuple(choices.items())):
                for key, value in _singly(*picked):
                    if (key, value) not in self._nodes:
                        new.setdefault(key, {})[value] = None
        for values in zip_longest(*new.values()):
            with suppress(UserError):
                self._compose(home.homes(), tuple((k, v) for k, v in zip(new, values, strict=True) if v is not None))

    def _compose(self, homes: tuple[Path, ...], choices: Choices) -> None:
        tree = compose_choices(homes, choices)
        self._nodes.update({(key, value): tree[groups()[key].slot] for key, value in choices})


def _others(choices: Choices) -> list[Picked]:
    """Those that are not what config.yaml has, overlays apart."""
    return [(k, v) for k, v in choices if k not in OVERLAYS and v not in (None, groups()[k].default)]


def _singly(key: str, value: Choice) -> list[Picked]:
    return [(key, (name,)) for name in value] if isinstance(value, tuple) else [(key, value)]
