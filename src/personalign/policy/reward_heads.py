"""Rewards on an answer's features that alignment trains: one for all users, and a low-rank basis for each to weigh."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from personalign.contracts import UserError
from personalign.plans import Deltas, Value
from personalign.policy.features import Reader
from personalign.policy.heads import Standardised
from personalign.policy.logprobs import Branches, token_states
from personalign.policy.policy import Policy
from personalign.policy.reference import readings

SPREAD = 0.01  # of a fresh basis, so that a fresh reward is nearly 0


class RewardHead(Standardised, ABC):
    """A reward on the features that `reader` reads; what it knows of a user is one vector of numbers.

    It rates the beginnings of answers too, by their tokens so far: what a plan reads as a `Value`.
    """

    def __init__(self, width: int, reader: Reader) -> None:
        super().__init__(width)
        self.reader = reader

    @abstractmethod
    def rewards(self, features: Tensor, user: Tensor | None) -> Tensor:
        """features [..., width], the user's vector or None for a user of whom nothing is known -> [...]."""

    def features(self, sums: Tensor, newest: Tensor, count: Tensor) -> Tensor:
        """What the reader makes of answers' beginnings [..., width]: from the states of their newest tokens, the sum
        over those before, and how many tokens they are."""
        return newest if self.reader.pooling == "last" else (sums + newest) / count

    def values(self, features: Tensor, user: tuple[float, ...]) -> Tensor:
        """`rewards` of features in any type, told of the user as a `Value` is."""
        told = self.mean.new_tensor(user) if user else None
        return self.rewards(features.to(self.mean.dtype), told)


class BradleyTerryHead(RewardHead):
    """r(y) = v^T phi(y), the same for every user; zero at first."""

    def __init__(self, width: int, reader: Reader) -> None:
        super().__init__(width, reader)
        self.weight = nn.Parameter(torch.zeros(width))

    def rewards(self, features: Tensor, user: Tensor | None = None) -> Tensor:
        return self.standard(features) @ self.weight


class LoReHead(RewardHead):
    """r_u(y) = w_u^T V phi(y): a basis V [rank, width] of rewards, and weights w_u on the simplex for every user of
    the training pairs, kept with their ids (LoRe, arXiv 2504.14439). A user's vector is w_u [rank]."""

    def __init__(self, width: int, reader: Reader, users: Sequence[str], rank: int) -> None:
        super().__init__(width, reader)
        self.users = tuple(users)
        self.basis = nn.Parameter(SPREAD * torch.randn(rank, width))
        self.logits = nn.Parameter(torch.randn(len(self.users), rank))

    def described(self) -> dict[str, str]:
        """Whose the weights are."""
        return {"users": json.dumps(list(self.users))}

    def basis_rewards(self, features: Tensor) -> Tensor:
        """features [..., width] -> the rewards that users weigh [..., rank]."""
        return self.standard(features) @ self.basis.T

    def weights(self, user: str) -> Tensor:
        """What training made of a user, [rank]; of one that it never met the mean over those it met."""
        known = self.logits.softmax(-1)
        return known[self.users.index(user)] if user in self.users else known.mean(0)

    def rewards(self, features: Tensor, user: Tensor | None) -> Tensor:
        weights = self.logits.softmax(-1).mean(0) if user is None else user
        return self.basis_rewards(features) @ weights


class ValueHead(RewardHead):
    """V(y_<=t) = W phi(y_<=t) + b: the reward that an answer with such a beginning comes to have, in each of some
    `dimensions`, or in all where none is named (VAS, arXiv 2405.06639); zero at first. A user's vector weighs them."""

    def __init__(self, width: int, reader: Reader, dimensions: Sequence[str]) -> None:
        super().__init__(width, reader)
        self.dimensions = tuple(dimensions)
        self.linear = nn.Linear(width, max(1, len(self.dimensions)))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def described(self) -> dict[str, str]:
        """Which dimension is which."""
        return {"dimensions": json.dumps(list(self.dimensions))}

    def forward(self, features: Tensor) -> Tensor:
        """features [..., width] -> a value for each dimension [..., dimensions]."""
        expected: Tensor = self.linear(self.standard(features))
        return expected

    def rewards(self, features: Tensor, user: Tensor | None) -> Tensor:
        """For a user of whom nothing is known the sum: of one value without a name, that."""
        expected: Tensor = self(features)
        return expected.sum(-1) if user is None else expected @ user


def check_rates(policy: Policy, value: Value) -> None:
    """Raise UserError where the policy has no such head that rates."""
    if value.head not in policy.heads or not isinstance(policy.heads[value.head], RewardHead):
        raise UserError(f"the policy has no head {value.head!r} that rates answers: let a stage train it first")


def rater(policy: Policy, value: Value) -> RewardHead:
    return cast(RewardHead, policy.heads[value.head])


def prefix_values(policy: Policy, rows: Sequence[Branches], value: Value) -> list[Tensor]:
    """Of every answer of some rows, under the present routing, the values of its beginnings: float32 [tokens]."""
    head = rater(policy, value)
    found = []
    for states in token_states(policy, rows):
        before = states.cumsum(0) - states
        count = torch.arange(1, len(states) + 1, device=states.device)[:, None]
        found.append(head.values(head.features(before, states, count), value.user))
    return found


def sequence_values(policy: Policy, rows: Sequence[Branches], deltas: Deltas, value: Value, description: str) -> Tensor:
    """The values of all beginnings of every answer, summed: float32 [rows, answers]; all rows have as many answers."""

    def read(some: Sequence[Branches]) -> Tensor:
        return torch.stack([values.sum() for values in prefix_values(policy, some, value)])

    return torch.stack(readings(policy, rows, deltas, "values", read, None, description))
