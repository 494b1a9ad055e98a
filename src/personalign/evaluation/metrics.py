"""Torchmetrics classes that average by user; they reduce over ranks to exactly what one process computes.

The states are flat lists (user key, value, weight) that are concatenated over ranks. Keys are hashes of
user names, so no rank has to know the others' users; the order of arrival changes no bit of the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from personalign.evaluation import text
from personalign.evaluation.statistics import Bootstrap, Estimate, Floats, Over, average, estimate, pooled, worst_tenth


def user_key(user: str) -> float:
    """A hash of a user's name that a float64 holds exactly (53 bits)."""
    digest = hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float(int.from_bytes(digest) >> 11)


class Items(Metric):
    """Items of users, each with some numbers, in one flat state for each number. `how` tells the intervals' bootstrap;
    keywords beyond are torchmetrics' own. `compute` gives an `Estimate`."""

    full_state_update = False

    def __init__(self, how: Bootstrap, numbers: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.how, self.names = how, ("users", *numbers)
        for name in self.names:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        # A rank without items contributes an empty tensor of the metric's own type: that of the others, then.
        self.set_dtype(torch.float64)

    def add(self, users: Sequence[str], *numbers: Sequence[float]) -> None:
        """Take in items, the numbers in the order of their names; raises ValueError unless all have one length."""
        if any(len(row) != len(users) for row in numbers):
            sizes = ", ".join(f"{len(row)} {name}" for name, row in zip(self.names, (users, *numbers), strict=True))
            raise ValueError(f"{sizes} differ in length")
        for name, row in zip(self.names, ([user_key(user) for user in users], *numbers), strict=True):
            getattr(self, name).append(torch.tensor(row, dtype=torch.float64, device=self.device))

    def _state(self, name: str) -> NDArray[np.float64]:
        # After a reduction over ranks the state is one tensor, before it a list that may be empty.
        state = getattr(self, name)
        empty = torch.zeros(0, dtype=torch.float64, device=self.device)
        joined = state if isinstance(state, Tensor) else torch.cat([empty, *state])
        array: NDArray[np.float64] = joined.cpu().numpy()
        return array


class ByUser(Items):
    """The mean over users of each user's weighted mean (`statistics.estimate`). Items of weight 0 are left out."""

    users: list[Tensor]
    values: list[Tensor]
    weights: list[Tensor]

    def __init__(self, how: Bootstrap, **options: Any) -> None:
        super().__init__(how, ("values", "weights"), **options)

    def compute(self) -> Estimate:
        return self._estimate(average)

    def _estimate(self, over: Over) -> Estimate:
        return estimate(self._state("users"), self._state("values"), self._state("weights"), self.how, over)


class Pooled(Items):
    """A measure of the sums over all items of some numbers of each (`statistics.pooled`)."""

    def __init__(self, measure: Callable[[Floats], Floats], parts: int, how: Bootstrap, **options: Any) -> None:
        super().__init__(how, [f"part{n}" for n in range(parts)], **options)
        self.measure = measure

    def update(self, users: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """Take in items; rows (items, parts)."""
        self.add(users, *([row[n] for row in rows] for n in range(len(self.names) - 1)))

    def compute(self) -> Estimate:
        columns = [self._state(name) for name in self.names[1:]]
        return pooled(self._state("users"), np.stack(columns, axis=1), self.measure, self.how)


class UserMean(ByUser):
    """The mean over users of the mean of each user's items."""

    def update(self, users: Sequence[str], values: Sequence[float]) -> None:
        self.add(users, values, [1.0] * len(values))


class RootMeanSquare(UserMean):
    """The root of the mean over users of the mean of each user's squared items."""

    def update(self, users: Sequence[str], values: Sequence[float]) -> None:
        super().update(users, [value * value for value in values])

    def compute(self) -> Estimate:
        return super().compute().mapped(lambda value: float(np.sqrt(value)))


class WorstTenth(UserMean):
    """The mean over the tenth of users, at least one, whose own means are least (`statistics.worst_tenth`)."""

    def compute(self) -> Estimate:
        return self._estimate(worst_tenth)


class UserRatio(ByUser):
    """The mean over users of (sum of `above`) / (sum of `below`), for example tokens per second.

    Items with nothing below are left out.
    """

    def update(self, users: Sequence[str], above: Sequence[float], below: Sequence[float]) -> None:
        self.add(users, [a / b if b else 0.0 for a, b in zip(above, below, strict=True)], below)


class Perplexity(UserRatio):
    """The geometric mean over users of exp(sum of a user's NLL / sum of its tokens); NLL in nats.

    Above are summed negative log-probabilities of answers, below their numbers of tokens.
    """

    def compute(self) -> Estimate:
        return super().compute().mapped(lambda value: float(np.exp(value)))


class AlignmentAccuracy(ByUser):
    """The share of preference pairs with a positive margin; a tie counts one half."""

    def update(self, users: Sequence[str], margins: Sequence[float]) -> None:
        self.add(users, [(float(np.sign(margin)) + 1.0) / 2.0 for margin in margins], [1.0] * len(margins))


class TextMean(ByUser):
    """The mean of a measure of each answer's text; answers where it is undefined (NaN) are left out."""

    def __init__(self, measure: Callable[[str], float], how: Bootstrap, **options: Any) -> None:
        super().__init__(how, **options)
        self.measure = measure

    def update(self, users: Sequence[str], texts: Sequence[str]) -> None:
        measured = np.array([self.measure(one) for one in texts], dtype=np.float64)
        defined = np.isfinite(measured)
        self.add(users, np.where(defined, measured, 0.0).tolist(), defined.astype(np.float64).tolist())


class Diversity(TextMean):
    """The product of unique n-gram shares of each answer, n = 2, 3, 4 (`text.diversity`)."""

    def __init__(self, how: Bootstrap, **options: Any) -> None:
        super().__init__(text.diversity, how, **options)


class Repetition(TextMean):
    """The share of 4-grams of each answer that it said before (`text.repetition`)."""

    def __init__(self, how: Bootstrap, **options: Any) -> None:
        super().__init__(text.repetition, how, **options)
