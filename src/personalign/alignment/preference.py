"""Learning from pairs: the objective of DPO and of PAD's features, one adapter a group, all in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from personalign.alignment.batches import Indices, Item
from personalign.alignment.losses import dpo_loss, margins, sft_loss
from personalign.plans import Deltas
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs

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

    So every group's gradient is what it would be alone, while one forward pass serves all of them. `imitation` weighs
    the chosen answer's negative log-probability a token beside it (DPO + NLL, arXiv 2404.19733).
    """

    def __init__(
        self,
        policy: Policy,
        rows: Rows,
        reference: Mapping[str, Tensor],
        deltas: Mapping[str, Deltas],
        beta: float,
        head: str | None = None,
        imitation: float = 0.0,
    ) -> None:
        self.policy, self.rows, self.reference = policy, rows, reference
        self.deltas, self.beta, self.head, self.imitation = deltas, beta, head, imitation

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses: list[Tensor] = []
        figures: dict[str, Tensor] = {}
        for group, (sums, lengths) in self._read(batch).items():
            m = self._margins(group, batch[group], sums)
            loss = self._loss(group, batch[group], m).mean()
            if self.imitation:
                loss = loss + self.imitation * sft_loss(sums[:, 0], lengths[:, 0]).mean()
            losses.append(loss)
            told = {"accuracy": (m > 0).float().mean(), "margin": self.beta * m.detach().mean()}
            told |= {"loss": loss.detach()} if len(batch) > 1 else {}
            figures |= {f"{group}/{k}" if len(batch) > 1 else k: v for k, v in told.items()}
        return torch.stack(losses).sum(), figures

    def _margins(self, group: str, some: list[int], sums: Tensor) -> Tensor:
        """log pi/pi_ref (chosen) - log pi/pi_ref (rejected) of rows, from log pi [rows, 2]."""
        return margins(sums, self.reference[group][some].to(sums.device))

    def _loss(self, group: str, some: list[int], m: Tensor) -> Tensor:
        return dpo_loss(m, self.beta)

    def _route(self, group: str, row: int) -> Deltas:
        return self.deltas[group]

    def _read(self, batch: Indices) -> dict[str, tuple[Tensor, Tensor]]:
        return read(self.policy, self.rows, self._route, batch, self.head)


class Imitation:
    """The mean negative log-probability of a token of each first answer, for each group under its own deltas: the sum
    over groups of a group's mean, as in `Preference`."""

    def __init__(self, policy: Policy, rows: Rows, deltas: Mapping[str, Deltas]) -> None:
        self.policy, self.rows, self.deltas = policy, rows, deltas

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        found = read(self.policy, self.rows, lambda group, _: self.deltas[group], batch)
        losses = {group: sft_loss(sums[:, 0], lengths[:, 0]).mean() for group, (sums, lengths) in found.items()}
        told = {f"{group}/loss": loss.detach() for group, loss in losses.items()} if len(batch) > 1 else {}
        return torch.stack(list(losses.values())).sum(), told


def read(
    policy: Policy, rows: Rows, route: Callable[[str, int], Deltas], batch: Indices, head: str | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Log-probabilities in nats and lengths in tokens of each group's answers: [rows, answers] both.

    `route` tells the deltas of a group's row. All groups are read in one forward pass; every row has as many answers. A
    row that recurs, with its answers in whatever order, is read once: users of different opinion judge the same two.
    """
    asked = [(route(group, i), rows[group][i]) for group, indices in batch.items() for i in indices]
    keys = [(deltas, row.prompt, frozenset(row.answers)) for deltas, row in asked]
    first: dict[tuple[Deltas, tuple[int, ...], frozenset[tuple[int, ...]]], Branches] = {}
    for key, (_, row) in zip(keys, asked, strict=True):
        first.setdefault(key, row)
    with policy.using(()):
        policy.routing.by_row([deltas for deltas, _, _ in first])
        logp = answer_logprobs(policy, list(first.values()), head)
    told = [(key, answer) for key, row in first.items() for answer in row.answers]
    sums = dict(zip(told, [one.sum() for one in logp], strict=True))
    found = torch.stack(
        [sums[key, answer] for key, (_, row) in zip(keys, asked, strict=True) for answer in row.answers]
    )
    lengths = torch.tensor([len(answer) for _, row in asked for answer in row.answers], device=found.device)
    answers, sizes = len(asked[0][1].answers), [len(indices) for indices in batch.values()]
    parts = [torch.split(one.view(-1, answers), sizes) for one in (found, lengths)]
    return dict(zip(batch, zip(*parts, strict=True), strict=True))
