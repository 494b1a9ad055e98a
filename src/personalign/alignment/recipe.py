"""How long and how fast a stage learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`steps` optimizer steps of `batch_size` pairs (of each group, over all processes).

    `warmup` is the part of the steps in which the rate rises; `max_grad_norm` holds for each group of weights.
    """

    learning_rate: float
    warmup: float
    schedule: Literal["constant", "linear", "cosine"]
    steps: int
    batch_size: int
    weight_decay: float
    max_grad_norm: float | None
    checkpoint_every: int

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0), as a part of the full one."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / rising
        left = 1.0 - (step - rising) / max(1, self.steps - rising)
        if self.schedule == "linear":
            return left
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 - left))) if self.schedule == "cosine" else 1.0
