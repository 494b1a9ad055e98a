"""LoRe: a low-rank basis of rewards, and for each user of the training pairs the weights of its members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from personalign.alignment.batches import Indices
from personalign.alignment.learner import Objective
from personalign.alignment.losses import bradley_terry_loss
from personalign.alignment.reward_head import HeadKeys, HeadStage, accuracy
from personalign.contracts import PositiveInt
from personalign.policy.features import Reader
from personalign.policy.reward_heads import LoReHead, RewardHead


class LoReStage(HeadStage):
    """r_u = w_u^T V phi with w_u = softmax(W_u), V and all W_u learned together (LoRe, arXiv 2504.14439).

    It minimises the mean over users of the mean over a user's pairs, as the released code's unregularised form does;
    where that pulls V towards a reward model's last layer, weight decay pulls it towards zero, since there is none.
    Memory `lore_weights` finds the weights of users that training never met, reward `lore` reads both.
    """

    needs = ("pairs",)
    provides = ("policy.heads.lore",)
    paper = "LoRe, arXiv 2504.14439; its released code, utils.py"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    head = "lore"

    def __init__(self, *, rank: PositiveInt, **shared: Unpack[HeadKeys]) -> None:
        super().__init__(**shared)
        self.rank = rank

    def settings(self) -> object:
        return self.rank

    def network(self, width: int, reader: Reader, users: Sequence[str]) -> LoReHead:
        return LoReHead(width, reader, list(dict.fromkeys(users)), self.rank)

    def objective(self, head: RewardHead, features: Tensor, users: Sequence[str], seed: int) -> Objective:
        assert isinstance(head, LoReHead)
        return LowRank(head, features, users)


class LowRank:
    """The mean over users of a user's mean Bradley-Terry loss, each with the user's own weights of the basis.

    A pair counts by how few its user has, so that batches of any pairs have this mean in expectation.
    """

    def __init__(self, head: LoReHead, features: Tensor, users: Sequence[str]) -> None:
        count = Counter(users)
        self.head, self.features = head, features
        self.user = torch.tensor([head.users.index(user) for user in users])
        self.counts = torch.tensor([len(users) / (len(count) * count[user]) for user in users], dtype=torch.float64)

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        (rows,) = batch.values()
        device = self.head.mean.device
        weights = self.head.logits.softmax(-1)[self.user[rows].to(device)]
        rewards = (self.head.basis_rewards(self.features[rows].to(device)) * weights[:, None]).sum(-1)
        loss = (self.counts[rows].to(rewards) * bradley_terry_loss(rewards)).mean()
        return loss, {"accuracy": accuracy(rewards)}
