"""What every generation says of its strength holds: it is a number among its keys, and no prompt depends on it."""

from __future__ import annotations

from typing import Any

import pytest

from personalign.composition.parts import PartView, catalogue
from personalign.plans import PolicySpec
from personalign.types import Request, UserState

PARTS = [part for part in catalogue() if part.group == "generation"]
STRONG = [part for part in PARTS if part.strength]


@pytest.mark.parametrize("part", STRONG, ids=lambda part: part.choice)
def test_a_strength_is_a_number_that_changes_the_plan_and_not_the_prompt(
    part: PartView, ask: Request, state: UserState, spec: PolicySpec, make: Any
) -> None:
    value = part.defaults[part.strength]
    assert isinstance(value, int | float)
    one, other = make(part.choice), make(part.choice, **{part.strength: 1.5 * value + 0.25})
    assert one.strength == part.strength and one.render(ask, state) == other.render(ask, state)
    assert one.plan(ask, state, spec).simplified() != other.plan(ask, state, spec).simplified()


def test_what_has_one_by_its_name_says_so() -> None:
    """A key that is called strength, or PAD's and Drift's beta, is what may be tuned."""
    named = {part.choice for part in PARTS if {"strength", "beta", "scale"} & part.params.keys()}
    assert len(named) > 8 and named <= {part.choice for part in STRONG}
