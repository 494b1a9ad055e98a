"""PARM: one autoregressive reward model for every weighing of dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, tensor, zeros

from personalign.alignment.conditioned import Aim, Conditioned, Margins, Mixtures, Weights
from personalign.alignment.losses import dpo_loss
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.types import Pair


class PARM(Conditioned):
    """An autoregressive reward model that is told the weights w: sum_k |w_k| (-log sigma(beta s_k m)) of every pair
    under weights that are drawn, m = log pi(chosen | w) - log pi(rejected | w) without a reference (PARM, ICML 2025).

    s_k is 1 where dimension k, or less of it for a negative w_k, speaks for the chosen answer, and -1 where it
    speaks for the other one. The paper's preference-aware bilinear LoRA adds B W(w) A with, in its released code,
    W(w) = diag(W_1, sum_k w_k W_2k). Since W is linear and w sums to 1 there, this is sum_k w_k of
    B_1 W_1 A_1 + B_2 W_2k A_2: deltas of rank r_1 + r_2, mixed by w as everywhere here. So all of its models can be
    held, at the same cost of use. What differs is the training: here each dimension learns factors of its own, where
    there A and B are shared and only the small matrices W_2k are not. Weights are drawn for each pair, there for each
    batch. Negative ones are ours: theta(-w) = -theta(w).
    """

    needs = ("pairs", "labels")
    provides = ("policy.features",)
    paper = "PARM, ICML 2025; its released code (loss, bilinear LoRA)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    stage = "parm"

    @property
    def objective(self) -> type[Mixtures]:
        return Votes

    def told(self, pair: Pair) -> Mapping[str, object]:
        return pair.labels

    def aim(self, pair: Pair, dimensions: Sequence[str], weights: Weights) -> Aim | None:
        """The answer that more weight speaks for is the chosen one; dimensions in which the pair hardly differs have
        no vote."""
        votes = [self._vote(pair, *one) for one in zip(dimensions, weights, strict=True)]
        if not any(votes):
            return None
        sign = 1.0 if sum(votes) >= 0 else -1.0
        own = sum(abs(vote) for vote in votes if vote * sign > 0)
        others = tuple(abs(vote) if vote * sign < 0 else 0.0 for vote in votes)
        return Aim(pair if sign > 0 else pair.swapped(), weights, own, others)

    def _vote(self, pair: Pair, dimension: str, weight: float) -> float:
        """w_k, with the sign of w_k times what the pair differs by in dimension k."""
        gap = pair.labels.get(dimension, 0.0)
        if gap == 0.0 or abs(gap) < self.min_gap:
            return 0.0
        return weight if gap > 0 else -weight

    def margins(self, policy: Policy, rows: Sequence[Branches], aims: Sequence[Aim], known: Sequence[str]) -> Margins:
        return None, lambda: tensor([sum(aim.others) for aim in aims])

    def reference(self, policy: Policy, rows: Sequence[Branches]) -> Tensor:
        return zeros(len(rows), 2)


class Votes(Mixtures):
    """own (-log sigma(beta m)) + others (-log sigma(-beta m)): the weight that speaks for each of a row's answers."""

    def _loss(self, group: str, some: list[int], m: Tensor) -> Tensor:
        own, others = self.own[some].to(m.device), self.others[some].to(m.device)
        return own * dpo_loss(m, self.beta) + others * dpo_loss(-m, self.beta)
