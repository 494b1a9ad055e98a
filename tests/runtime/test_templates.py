"""Templates: one pass, so that what is filled in is never filled itself."""

from __future__ import annotations

import pytest

from personalign.contracts import UserError
from personalign.runtime.templates import checked, fill


def test_braces_in_values_and_other_braces_stay() -> None:
    assert fill("{a} {b} {c} {} {a b}", a="{b}", b="{a}") == "{b} {a} {c} {} {a b}"


def test_fields_are_checked() -> None:
    assert checked("{a} {b}", ("a",), ("b",)) == "{a} {b}"
    with pytest.raises(UserError, match=r"lacks \{a\}: its fields are \{a\}, \{b\}"):
        checked("{b}", ("a",), ("b",))
    with pytest.raises(UserError, match=r"has an unknown \{c\}"):
        checked("{a} {c}", ("a",))
