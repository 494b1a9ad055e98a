"""Reward heads on the features of a frozen policy: what their stages share, and the one that serves all users alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from personalign.alignment.batches import Indices, Item
from personalign.alignment.learner import Objective
from personalign.alignment.losses import bradley_terry_loss
from personalign.alignment.preference import items
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Head, drawn
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, PositiveInt, Render
from personalign.plans import Rater
from personalign.policy.features import Reader
from personalign.policy.reference import fingerprint
from personalign.policy.reward_heads import BradleyTerryHead, RewardHead

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class HeadKeys(TrainedKeys):
    """See `HeadStage`."""

    pooling: Literal["last", "mean"]
    pairs: PositiveInt | None


class HeadStage(Trained):
    """Trains the head `head` of the policy on the features of everybody's pairs, the policy as it stands being frozen.

    The prompt is the plain request, whatever generation makes of it: so a reward can judge the answers of any, and
    what it knows of a user is in the user's vector alone.
    """

    head: ClassVar[str]

    def __init__(
        self, *, pooling: Literal["last", "mean"], pairs: PositiveInt | None, **trained: Unpack[TrainedKeys]
    ) -> None:
        super().__init__(**trained)
        self.pooling, self.pairs = pooling, pairs

    @abstractmethod
    def network(self, width: int, reader: Reader, users: Sequence[str]) -> RewardHead:
        """A fresh head, drawn from torch's present random state, for the users of the pairs."""

    @abstractmethod
    def objective(self, head: RewardHead, features: Tensor, users: Sequence[str], seed: int) -> Objective:
        """What is minimised on features [pairs, 2, width], chosen first, of pairs of these `users` [pairs]; `seed` is
        for what it draws."""

    def settings(self) -> object:
        """What else than recipe, data and reader the result depends on."""
        return None

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        pairs = share(nonempty(data.pairs("train"), self.head), self.pairs)
        self.limits.check(policy)
        reader = Reader(policy.spec.aligned, self.pooling, self.limits.max_prompt, self.limits.max_answer)
        rows = [reader.row(policy, p.request.messages, (p.chosen, p.rejected), p.request.id) for p in pairs]
        users = [pair.request.user for pair in pairs]
        with drawn(fitting.seed, "head", self.head):
            head = self.network(policy.embedding.embedding_dim, reader, users)

        def prepare() -> tuple[Objective, dict[str, list[Item]]]:
            features = torch.stack(reader.features(policy, rows, "features of pairs"))
            head.standardise(features.flatten(0, 1))
            return self.objective(head, features, users, fitting.seed), items({self.head: rows})

        content = [self.head, fingerprint(policy, reader.deltas), reader, self.settings(), users, rows]
        trainee = Head(self.head, head)
        recipe = self.recipe
        lesson = Lesson(title=self.head, trainee=trainee, content=content, recipe=recipe, prepare=prepare, light=True)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, raters={**policy.spec.raters, self.head: Rater(reader.deltas)})
        return figures


class BradleyTerryStage(HeadStage):
    """One linear reward for all users, by the Bradley-Terry loss on everybody's pairs (survey, section 4.2; arXiv
    2203.02155, eq. 1). Reward `bradley_terry` reads it. Where users want opposite things it can serve no one."""

    needs = ("pairs",)
    provides = ("policy.heads.bradley_terry",)
    paper = "Bradley and Terry 1952; arXiv 2203.02155, eq. 1"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    head = "bradley_terry"

    def network(self, width: int, reader: Reader, users: Sequence[str]) -> BradleyTerryHead:
        return BradleyTerryHead(width, reader)

    def objective(self, head: RewardHead, features: Tensor, users: Sequence[str], seed: int) -> Objective:
        return Pooled(head, features)


class Pooled:
    """The mean Bradley-Terry loss of a head that is told nothing of the users."""

    def __init__(self, head: RewardHead, features: Tensor) -> None:
        self.head, self.features = head, features

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        (rows,) = batch.values()
        rewards = self.head.rewards(self.features[rows].to(self.head.mean.device), None)
        return bradley_terry_loss(rewards).mean(), {"accuracy": accuracy(rewards)}


def accuracy(rewards: Tensor) -> Tensor:
    """The share of rewards [..., 2] in which the chosen answer has the higher one."""
    return (rewards[..., 0] > rewards[..., 1]).float().mean()
