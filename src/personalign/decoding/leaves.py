"""Candidates as leaves behind one prefix: what is read of them, what they are worth, and the chosen one's traces.

Where a plan reads values, every row reads all candidates of its answer in one forward. They stand side by side in the
cache, at the position of the next token, and each sees the prefix and itself. Then the chosen one's column stays, and
from its state the next token is predicted: nothing is read twice, and the prefix is kept once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from personalign.decoding.rows import Row
from personalign.plans import Value
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import rater


class Leaves:
    """What rows know beside their cache: `sums` [rows, width] over the states of their answers' tokens that they have
    read, and `chosen` [rows, width], the state of the newest one where they have read it as a candidate, with so many
    others in vain as `dropped` says."""

    def __init__(self, hidden: Tensor) -> None:
        """Of rows that have read their prompts, to last states [rows, width]."""
        self.sums = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
        self.chosen: Tensor | None = None
        self.dropped = 0

    def arrange(self, rows: Sequence[Row], device: torch.device) -> None:
        """Which values are read in which of these rows, which are those that it knows, in their order."""
        self.answers = [row.answer for row in rows]
        found: dict[Value, list[tuple[int, float]]] = {}
        for i, row in enumerate(rows):
            for weight, value in row.values:
                found.setdefault(value, []).append((i, weight))
        self.terms = [
            (
                value,
                torch.tensor([i for i, _ in some], device=device),
                torch.tensor([w for _, w in some], device=device),
            )
            for value, some in found.items()
        ]

    def select(self, index: Tensor) -> None:
        self.sums = self.sums[index]
        self.chosen = None if self.chosen is None else self.chosen[index]

    def join(self, other: Leaves, index: Tensor) -> None:
        """Put another's rows, which have chosen where these have, behind these, in the order of `index`."""
        self.sums = torch.cat([self.sums, other.sums])[index]
        if self.chosen is not None and other.chosen is not None:
            self.chosen = torch.cat([self.chosen, other.chosen])[index]

    def keep(self, states: Tensor | None, leaf: Tensor) -> None:
        """Of candidates with states [rows, leaves, width], None where they were not read, `leaf` [rows] is chosen."""
        self.chosen = None if states is None else states[torch.arange(len(leaf), device=leaf.device), leaf]
        self.dropped = 0 if states is None else states.shape[1] - 1

    def rated(self, policy: Policy, states: Tensor) -> Tensor:
        """Weighted values, summed row by row, of candidates with states [rows, leaves, width]: [rows, leaves]."""
        scores = torch.zeros(states.shape[:2], device=states.device)
        count = torch.tensor([len(answer.tokens) + 1 for answer in self.answers], device=states.device)[:, None, None]
        for value, rows, weights in self.terms:
            head = rater(policy, value)
            features = head.features(self.sums[rows, None], states[rows], count[rows])
            scores.index_add_(0, rows, head.values(features, value.user).float() * weights[:, None])
        return scores
