"""Put one value into a composition, at a key that is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from personalign.composition.home import choices, nearest
from personalign.composition.layers import Setting
from personalign.composition.parts import Group, catalogue, groups
from personalign.composition.schema import slots


def put(tree: dict[str, Any], setting: Setting) -> list[str]:
    """Set, merge or delete, and return problems: only inside a part's own mapping may a key be new."""
    if isinstance(setting.value, Mapping) and isinstance(_at(tree, setting.path), Mapping):
        children = [
            Setting((*setting.path, str(key)), value, f"{setting.where}.{key}") for key, value in setting.value.items()
        ]
        return [problem for child in children for problem in put(tree, child)]
    if problem := _refusal(tree, setting):
        return [f"{setting.where}: {problem}"]
    node = tree
    for key in setting.path[:-1]:
        node[key] = node[key] if isinstance(node.get(key), dict) else {}
        node = node[key]
    if setting.mode == "delete":
        del node[setting.path[-1]]
    else:
        node[setting.path[-1]] = setting.value
    return []


def _refusal(tree: dict[str, Any], setting: Setting) -> str | None:
    """Why the value cannot be put there, and what to write instead."""
    path, depth = setting.path, _depth(setting.path[0])
    there = _at(tree, path, absent := object())
    if path[-1] == "_target_" or path[0] == "choices":
        return "is set by the choices of the groups, not by hand"
    if path[0] in slots() and len(path) < depth:
        return _about_part(path, isinstance(setting.value, Mapping))
    if len(path) > depth:
        key = path[: int(depth)]
        missing = there is absent if setting.mode == "delete" else _at(tree, key, absent) is absent
        return _about_unknown(tree, path if setting.mode == "delete" else key) if missing else None
    if there is absent:
        return _about_unknown(tree, path)
    if setting.mode != "set":
        return "is always there: write it without + or ~"
    if path[0] not in slots() and isinstance(there, Mapping):
        return f"holds keys: {', '.join(there)}"
    return None


def _depth(slot: str) -> float:
    """How long the path to a key of a part is; what is longer lies inside the key's own mapping."""
    group = slots().get(slot)
    return float("inf") if group is None else 3 if group.many else 2


def _at(tree: Any, path: tuple[str, ...], absent: Any = None) -> Any:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return absent
        tree = tree[key]
    return tree


def _about_part(path: tuple[str, ...], keys: bool) -> str:
    """What to write where a whole part was given: a choice, or keys for a choice that was not made."""
    group = slots()[path[0]]
    if keys and len(path) == 2:
        return _about_choice(group, path[1])
    entry = f"- override /{group.key}: {'[choice, ...]' if group.many else 'choice'}"
    return f"holds keys of its own; choose it as {group.key}=..., or in a file's defaults as '{entry}'"


def _about_choice(group: Group, name: str) -> str:
    known = choices(group.folder)
    if name in known:
        return f"{group.key}={name} is not chosen"
    return f"{group.folder} has no choice {name}{nearest(name, known)}"


def _about_unknown(tree: dict[str, Any], path: tuple[str, ...]) -> str:
    """The nearest keys; or the choices that would take it."""
    group = slots().get(path[0])
    if group is not None and len(path) == _depth(path[0]):
        if group.many and path[1] not in tree[group.slot]:
            return _about_choice(group, path[1])
        parts = catalogue(strict=False)
        if takers := [p.choice for p in parts if p.group == group.folder and path[-1] in p.params]:
            return f"no such key; {', '.join(f'{group.key}={name}' for name in takers)} would take it"
    dotted = ".".join(path)
    keys = [".".join(place) for place in _keys(tree)]
    return f"no such key{nearest(dotted, [*keys, *groups()]) or '; --print-config shows those there are'}"


def _keys(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*above, str(key))
        if isinstance(value, Mapping):
            yield from _keys(value, (*above, str(key)))
