"""What of the texts that several memories recall is kept: each event once, and as much as one budget holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from personalign.types import UserState


def distinct(states: Sequence[UserState]) -> list[UserState]:
    """The states without the snippets of events that an earlier state recalled: that one keeps them, with its scores
    and weights. A state may hold several snippets of one event."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for state in states:
        new = tuple(one for one in state.snippets if (one.owner, one.event) not in seen)
        seen.update((one.owner, one.event) for one in new)
        kept.append(replace(state, snippets=new))
    return kept


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
