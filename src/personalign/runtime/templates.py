"""Templates whose fields stand in braces, as YAML files give them.

They are filled in one pass, so that braces in a user's text, and any other braces of the template, stay as they are.
"""

from __future__ import annotations

import re

from personalign.contracts import UserError

_FIELD = re.compile(r"\{(\w+)\}")


def checked(template: str, needs: tuple[str, ...], may: tuple[str, ...] = ()) -> str:
    """The template itself; raises UserError where it lacks a field or has one that nobody fills."""
    found = set(_FIELD.findall(template))
    for field in (*sorted(set(needs) - found), *sorted(found - {*needs, *may})):
        fields = ", ".join(f"{{{name}}}" for name in (*needs, *may))
        fault = "lacks" if field in needs else "has an unknown"
        raise UserError(f"the template {template!r} {fault} {{{field}}}: its fields are {fields}")
    return template


def fill(template: str, **values: str) -> str:
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)
