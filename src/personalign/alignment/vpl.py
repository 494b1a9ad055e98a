"""Variational preference learning: a latent for every user, inferred from choices, and a reward that it conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from personalign.alignment.batches import Indices
from personalign.alignment.learner import Objective
from personalign.alignment.losses import bradley_terry_loss, gaussian_kl
from personalign.alignment.reward_head import HeadKeys, HeadStage, accuracy
from personalign.contracts import Fraction, NonNegativeFloat, PositiveInt
from personalign.policy.features import Reader
from personalign.policy.reward_heads import RewardHead
from personalign.policy.vpl import VPLHead
from personalign.runtime.seeds import derive


class VPLStage(HeadStage):
    """Encoder q(z | a user's choices) and decoder r(y, z), trained together by the evidence lower bound:
    -log sigma(r(chosen, z) - r(rejected, z)) + weight KL(q || N(0, I)) (VPL, NeurIPS 2024).

    For every pair, z is drawn from what 1 to `context` other pairs of the same user say. The paper's scaling of rewards
    (SPO) for policies that are trained on them is not here. Memory `vpl` encodes, reward
    `vpl` decodes.
    """

    needs = ("pairs",)
    provides = ("policy.heads.vpl",)
    paper = "VPL, NeurIPS 2024, arXiv 2408.10075"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    head = "vpl"

    def __init__(
        self,
        *,
        latent: PositiveInt,
        hidden: PositiveInt,
        context: PositiveInt,
        kl_weight: NonNegativeFloat,
        kl_start: Fraction,
        kl_period: PositiveInt | None,
        **shared: Unpack[HeadKeys],
    ) -> None:
        super().__init__(**shared)
        self.latent, self.hidden, self.context = latent, hidden, context
        self.kl_weight, self.kl_start, self.kl_period = kl_weight, kl_start, kl_period

    def settings(self) -> object:
        return [self.latent, self.hidden, self.context, self.kl_weight, self.kl_start, self.kl_period]

    def network(self, width: int, reader: Reader, users: Sequence[str]) -> VPLHead:
        return VPLHead(width, reader, self.hidden, self.latent)

    def objective(self, head: RewardHead, features: Tensor, users: Sequence[str], seed: int) -> Objective:
        assert isinstance(head, VPLHead)
        return Variational(head, features, users, self.context, self.kl, seed)

    def kl(self, step: int) -> float:
        """What the KL divergence counts at a step."""
        return self.kl_weight * (1.0 if self.kl_period is None else annealing(step, self.kl_period, self.kl_start))


def annealing(step: int, period: int, start: float) -> float:
    """From `start` to 1 along half a cosine, over and over every `period` steps (the released code's cyclic form)."""
    risen = 0.5 * (1.0 - math.cos(math.pi * (step % period) / period))
    return start + (1.0 - start) * risen


class Variational:
    """The evidence lower bound, negated, with one draw of context and latent for every pair of a batch.

    A pair's draws depend on the seed, its number and the step alone, so that several processes make those of one.
    """

    def __init__(
        self,
        head: VPLHead,
        features: Tensor,
        users: Sequence[str],
        context: int,
        kl: Callable[[int], float],
        seed: int,
    ) -> None:
        self.head, self.features, self.users, self.context, self.kl = head, features, users, context, kl
        self.seed, self.step, self.weight = seed, 0, kl(0)
        self.own: dict[str, list[int]] = {}
        for row, user in enumerate(users):
            self.own.setdefault(user, []).append(row)

    def at(self, step: int) -> None:
        self.step, self.weight = step, self.kl(step)

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        (rows,) = batch.values()
        device = self.head.mean.device
        draws = [torch.Generator().manual_seed(derive(self.seed, "vpl", str(self.step), str(row))) for row in rows]
        others, there = self.contexts(rows, draws)
        mean, log_variance = self.head.posterior(self.features[others].to(device), there.to(device))
        noise = torch.stack([torch.randn(mean.shape[1], generator=draw) for draw in draws])
        z = mean + (0.5 * log_variance).exp() * noise.to(mean)
        rewards = self.head.rewards(self.features[rows].to(device), z[:, None])
        kl = gaussian_kl(mean, log_variance).mean()
        loss = bradley_terry_loss(rewards).mean() + self.weight * kl
        return loss, {"accuracy": accuracy(rewards), "kl": kl.detach()}

    def contexts(self, rows: Sequence[int], draws: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """For every row, rows of other pairs of its user, drawn by its own generator without putting back, and which
        of these places are filled: [rows, context] both."""
        places = torch.zeros(len(rows), self.context, dtype=torch.long)
        there = torch.zeros(len(rows), self.context, dtype=torch.bool)
        for i, (row, draw) in enumerate(zip(rows, draws, strict=True)):
            others = [other for other in self.own[self.users[row]] if other != row]
            most = min(self.context, len(others))
            count = int(torch.randint(1, most + 1, (), generator=draw)) if most else 0
            order = torch.randperm(len(others), generator=draw)[:count]
            places[i, :count] = torch.tensor(others, dtype=torch.long)[order]
            there[i, :count] = True
        return places, there
