"""Learning from pairs: the objective of DPO and of PAD's features, one adapter a group, all in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from personalign.alignment.batches import Indices, Item
from personalign.alignment.losses import dpo_loss, margins, sft_loss
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.types import Deltas

Rows = Mapping[str, Sequence[Branches]]


def items(rows: Rows) -> dict[str, list[Item]]:
    """Every row by group; rows with the same answers are about the same, whatever stands before them."""
    return {group: [Item(row.length, frozenset(row.answers)) for row in some] for group, some in rows.items()}


def references(policy: Policy, rows: Rows, deltas: Deltas) -> dict[str, Tensor]:
    """Reference log-probs [rows, 2] of every group under `deltas`, each answer read once (see `reference`)."""
    flat = [row for some in rows.values() for row in some]
    values = sequence_logprobs(policy, flat, deltas, policy.cache, "reference log-probs")
    return dict(zip(rows, values.split_with_sizes([len(some) for some in rows.values()]), strict=True))


class Preference:
    """-log sigma(beta margin), for each group under its own deltas: the sum over groups of a group's mean.

    So every group's gradient is what it would be alone, while one forward pass serves all of them.
    """

    def __init__(
        self,
        policy: Policy,
        rows: Rows,
        reference: Mapping[str, Tensor],
        deltas: Mapping[str, Deltas],
        beta: float,
        head: str | None = None,
    ) -> None:
        self.policy, self.rows, self.reference = policy, rows, reference
        self.deltas, self.beta, self.head = deltas, beta, head

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        found = self._margins(batch)
        losses = [dpo_loss(m, self.beta).mean() for m in found.values()]
        figures: dict[str, Tensor] = {}
        for (group, m), loss in zip(found.items(), losses, strict=True):
            told = {"accuracy": (m > 0).float().mean(), "margin": self.beta * m.detach().mean()}
            told |= {"loss": loss.detach()} if len(found) > 1 else {}
            figures |= {f"{group}/{k}" if len(found) > 1 else k: v for k, v in told.items()}
        return torch.stack(losses).sum(), figures

    def _margins(self, batch: Indices) -> dict[str, Tensor]:
        """The margins of each group's pairs, in nats."""
        rows = [self.rows[group][i] for group, some in batch.items() for i in some]
        routes = [self.deltas[group] for group, some in batch.items() for _ in some]
        with self.policy.using(()):
            self.policy.routing.by_row(routes)
            logp = answer_logprobs(self.policy, rows, self.head)
        sums = torch.stack([one.sum() for one in logp]).view(-1, 2)
        reference = torch.cat([self.reference[group][some] for group, some in batch.items()])
        found = margins(sums, reference.to(sums.device))
        return dict(zip(batch, found.split_with_sizes([len(some) for some in batch.values()]), strict=True))


class Imitation:
    """The mean negative log-probability of a token of each first answer, under the given deltas."""

    def __init__(self, policy: Policy, rows: Sequence[Branches], deltas: Deltas) -> None:
        self.policy, self.rows, self.deltas = policy, rows, deltas

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = [self.rows[i] for some in batch.values() for i in some]
        with self.policy.using(self.deltas):
            logp = answer_logprobs(self.policy, rows)
        sums = torch.stack([one.sum() for one in logp])
        sizes = torch.tensor([len(one) for one in logp], device=sums.device)
        return sft_loss(sums, sizes).mean(), {}
