"""The check of a composition's values: of parts against their classes, of all else against `values`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from personalign.composition.home import nearest
from personalign.composition.parts import Group, groups, view
from personalign.composition.values import Values
from personalign.contracts import UserError

MISSING = "???"
OVERLAYS = ("scale", "debug")
TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "none_required": "null",
    "string_too_short": "text with something in it",
    "too_short": "a list with something in it",
    "string_pattern_mismatch": "1 to 128 characters, none of them / \\ # ? % or :",
    "predicate_failed": "like http://localhost:8000/v1, without user, password, query or blanks",
}
SHORTER = {"greater than or equal to": "at least", "less than or equal to": "at most"}


def slots() -> dict[str, Group]:
    """The groups that hold parts, by the key under which a composition has them."""
    others = (*Values.model_fields, *OVERLAYS)
    return {group.slot: group for group in groups().values() if group.slot not in others}


def nodes(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The node of every part by its dotted place: `generation`, `memory.bm25`; absent slots are left out."""
    found: dict[str, Any] = {}
    for slot, group in slots().items():
        if slot not in tree:
            continue
        if group.many and isinstance(tree[slot], Mapping):
            found |= {f"{slot}.{choice}": node for choice, node in tree[slot].items()}
        else:
            found[slot] = tree[slot]
    return found


def check_values(tree: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Problems of all that is no part, and its values brought to their types."""
    rest = {key: value for key, value in tree.items() if key not in slots()}
    lacking = list(missing(rest))
    try:
        typed = Values.model_validate(rest).model_dump()
        problems, typed["tune"]["strengths"] = _strengths(tree.get("generation"), typed["tune"]["strengths"])
        return [*lacking, *problems], typed
    except ValidationError as error:
        return [*dict.fromkeys([*lacking, *describe(error, rest, known=Values.model_fields)])], rest


def _strengths(node: Any, values: list[int | float] | None) -> tuple[list[str], list[Any] | None]:
    """Problems of the values that generation's strength may take, and these brought to its type."""
    key = strength(node)
    if values is None or not key:
        return [], values
    problems, typed = [], []
    for i, value in enumerate(values):
        try:
            typed.append(check(view(node["_target_"]).params[key], value))
        except ValidationError as error:
            problems += describe(error, value, f"tune.strengths.{i}")
    twice = [value for i, value in enumerate(typed) if value in typed[:i]]
    return [*problems, *(f"tune.strengths names {value} twice" for value in dict.fromkeys(twice))], typed


def strength(node: Any) -> str:
    """The key of generation's node that says how strong it is; '' where there is none."""
    try:
        return view(str(node["_target_"])).strength if isinstance(node, Mapping) and node.get("_target_") else ""
    except UserError:
        return ""


def check_part(place: str, node: Any) -> tuple[list[str], dict[str, Any]]:
    """Problems of one part's node against its class, and its values brought to their types."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return [f"{place}: a part with a _target_ is expected"], {}
    given = {key: value for key, value in node.items() if key != "_target_"}
    try:
        params = view(str(node["_target_"])).params if node["_target_"] else {}
    except UserError as error:
        return [f"{place}: {error}"], dict(node)
    problems = [f"{place}.{key}: no such key{nearest(key, params)}" for key in given if key not in params]
    problems += [f"{place}.{key} is missing" for key in params if key not in given]
    typed: dict[str, Any] = {"_target_": node["_target_"]}
    for key in [key for key in given if key in params]:
        if lacking := list(missing(given[key], f"{place}.{key}")):
            problems += lacking
            continue
        try:
            typed[key] = check(params[key], given[key])
        except ValidationError as error:
            problems += describe(error, given[key], f"{place}.{key}")
    return problems, typed


def missing(value: Any, place: str = "") -> Iterator[str]:
    """The problem of every mandatory value (`???`) that nobody gave."""
    if value == MISSING:
        yield f"{place} must be given: set {place}=..."
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from missing(item, f"{place}.{key}".strip("."))


def check(annotation: Any, value: Any) -> Any:
    """`value` as its type: no text becomes a number, and a number is finite, but a list serves as a tuple. Raises
    ValidationError."""
    return _adapter(annotation).validate_json(json.dumps(value), strict=True)


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def describe(error: ValidationError, given: Any, place: str = "", known: Iterable[str] = ()) -> list[str]:
    """One line for each key of `given` at fault, below `place`; what the members of a union say is joined."""
    lines: dict[str, list[str]] = {}
    # An address that is not as it should be is not shown: it may hold a password.
    hidden = [item["input"] for item in error.errors() if item["type"] == "predicate_failed"]
    for item in error.errors():
        path = ".".join([place, *_keys(item["loc"], given)]).strip(".")
        if item["type"] == "missing":
            lines.setdefault(f"{path}.{item['loc'][-1]} is missing".strip("."), [])
        elif item["input"] == MISSING:
            lines.update((line, []) for line in missing(MISSING, path))
        elif item["type"] == "extra_forbidden":
            lines.setdefault(f"{path}: no such key{nearest(path, known)}", [])
        else:
            text = TYPES.get(item["type"]) or item["msg"].removeprefix("Input ").removeprefix("should be ")
            for long, short in SHORTER.items():
                text = text.replace(long, short)
            shown = "***" if item["input"] in hidden else json.dumps(item["input"])
            lines.setdefault(f"{path}={shown}: must be", []).append(text)
    return [" ".join([line, " or ".join(dict.fromkeys(texts))]).strip() for line, texts in lines.items()]


def _keys(location: tuple[int | str, ...], value: Any) -> list[str]:
    """The keys and positions of an error's location that the value has, without a union's member names."""
    found = []
    for key in location:
        here: Any = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(here, Mapping) and key in here:
            found.append(str(key))
            value = here[key]
    return found
