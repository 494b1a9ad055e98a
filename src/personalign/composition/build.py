"""From a node of a composition to the part itself: the one place that imports a `_target_`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from personalign.composition.schema import check_part
from personalign.contracts import UserError


def build(node: DictConfig | Mapping[str, Any]) -> Any:
    """The part of a node (`_target_` and its keyword arguments); None where the target is null.

    Raises UserError when the keys or their types are not those of the class.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    problems, typed = check_part("", plain)
    if problems:
        raise UserError("\n".join(f"{plain.get('_target_')}: {p.lstrip('.')}" for p in problems))  # type: ignore[union-attr]
    target = typed.pop("_target_")
    if target is None:
        return None
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)(**typed)


def build_many(nodes: Mapping[str, Any]) -> list[Any]:
    """The parts of a group that holds several, in their order."""
    return [build(node) for node in nodes.values()]
