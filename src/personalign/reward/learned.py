"""Rewards that a trained head of the policy reads in an answer's last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from personalign.contracts import Reward
from personalign.plans import Plan
from personalign.types import Request, Score, UserState

if TYPE_CHECKING:
    from torch import Tensor

    from personalign.policy.policy import Policy
    from personalign.policy.reward_heads import RewardHead


class Learned(Reward):
    """What the head `head` makes of request and answer, told the user's vector of that name, where there is one."""

    head: ClassVar[str]

    def __init__(self) -> None:
        self._policy: Policy | None = None

    def bind(self, policy: Policy | None, plan: Callable[[Request], Plan]) -> None:
        self._policy = None if policy is None else policy.learner

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return self.score_all([(request, state, responses)])[0]

    def score_all(self, asked: Sequence[tuple[Request, UserState, Sequence[str]]]) -> list[list[Score]]:
        """All answers in few forward passes; a prompt and an answer that recur are read once."""
        if self._policy is None or self.head not in self._policy.heads:
            raise RuntimeError(f"the reward reads the head {self.head!r} of a policy: call bind with one that has it")
        policy, head = self._policy, cast("RewardHead", self._policy.heads[self.head])
        rows = [head.reader.row(policy, request.messages, texts, request.id) for request, _, texts in asked if texts]
        features = iter(head.reader.features(policy, rows, f"reward {self.head}"))
        return [self._scores(head, next(features), state) if texts else [] for _, state, texts in asked]

    def _scores(self, head: RewardHead, features: Tensor, state: UserState) -> list[Score]:
        import torch

        device, vector = head.mean.device, state.vectors.get(self.head)
        user = None if vector is None else torch.tensor(vector, dtype=torch.float32, device=device)
        with torch.no_grad():
            return [Score(value) for value in head.rewards(features.to(device), user).tolist()]


class BradleyTerry(Learned):
    """One linear reward for all users (stage `reward_head`): what pooled preferences agree in (survey, section 4.2)."""

    needs = ("policy.heads.bradley_terry",)
    provides = ()
    paper = "Bradley and Terry 1952; arXiv 2203.02155, eq. 1"
    node = "personalized rewarding / parameter"

    head = "bradley_terry"


class LoRe(Learned):
    """r_u = w_u^T V phi with the weights that memory `lore_weights` found (LoRe, arXiv 2504.14439); the mean of the
    weights in training for a user without."""

    needs = ("policy.heads.lore", "state.vectors.lore")
    provides = ()
    paper = "LoRe, arXiv 2504.14439"
    node = "personalized rewarding / encoding"

    head = "lore"


class VPL(Learned):
    """r(y, z) with z the mean of the posterior that memory `vpl` inferred (VPL, arXiv 2408.10075), or of the prior."""

    needs = ("policy.heads.vpl", "state.vectors.vpl")
    provides = ()
    paper = "VPL, NeurIPS 2024, arXiv 2408.10075"
    node = "personalized rewarding / encoding"

    head = "vpl"
