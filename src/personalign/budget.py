"""How much of what several memories recall is kept, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from personalign.types import UserState


def within(states: Sequence[UserState], budget: int, size: Callable[[str], int]) -> list[UserState]:
    """The states with as much text as `budget` holds, measured by `size` (0 or more).

    State by state in their order, first the profile and then the snippets, each whole. The first text that does not
    fit is left out with all after it, so that a larger budget never loses what a smaller one kept. What templates
    add is not counted, and stances and vectors are no text.
    """
    left = budget

    def fits(text: str) -> bool:
        nonlocal left
        left = max(left - size(text), -1) if left >= 0 else -1
        return left >= 0

    kept = []
    for state in states:
        profile = state.profile if state.profile is not None and fits(state.profile) else None
        kept.append(replace(state, profile=profile, snippets=tuple(s for s in state.snippets if fits(s.text))))
    return kept
