"""The DPO objective as it is commonly written, with each of our savings on or off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import _shared as _bench  # noqa: F401 - before torch: it settles the threads
import torch
from torch import Tensor

from personalign.alignment.batches import Indices
from personalign.alignment.losses import margins
from personalign.alignment.preference import Preference
from personalign.policy.logprobs import Branches, _layout, answer_logprobs
from personalign.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Savings:
    """Logits of answers alone (as our fused head computes them); the reference once; one row a pair."""

    logits: bool = False
    reference: bool = False
    prompt: bool = False


class Switched(Preference):
    """`Preference`, whose savings can be switched off."""

    savings = Savings()

    def _read(self, batch: Indices) -> dict[str, tuple[Tensor, Tensor]]:
        ((group, some),) = batch.items()
        with self.policy.using(self.deltas[group]):
            sums = self._sums(self._laid(group, some))
        return {group: (sums, torch.tensor([[len(a) for a in self.rows[group][i].answers] for i in some]))}

    def _margins(self, group: str, some: list[int], sums: Tensor) -> Tensor:
        if self.savings.reference:
            return super()._margins(group, some, sums)
        with torch.no_grad(), self.policy.using(()):
            reference = self._sums(self._laid(group, some))
        return margins(sums, reference)

    def _laid(self, group: str, some: list[int]) -> list[Branches]:
        rows = [self.rows[group][i] for i in some]
        if self.savings.prompt:
            return rows
        return [Branches(row.prompt, (answer,)) for row in rows for answer in row.answers]

    def _sums(self, rows: Sequence[Branches]) -> Tensor:
        read = answer_logprobs if self.savings.logits else everywhere
        return torch.stack([one.sum() for one in read(self.policy, rows)]).view(-1, 2)


def everywhere(policy: Policy, rows: Sequence[Branches]) -> list[Tensor]:
    """`answer_logprobs` by the logits of every token."""
    layout = _layout(policy, rows)
    hidden = policy.hidden(**layout.inputs, attention_mask=layout.mask, position_ids=layout.positions, use_cache=False)
    logp = policy.logits(hidden).log_softmax(-1).flatten(0, 1)
    return list(logp[layout.reads, layout.targets].split_with_sizes(layout.sizes))
