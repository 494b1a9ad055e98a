"""Supervised fine-tuning on the answers that users chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from personalign.alignment.batches import Item, encode
from personalign.alignment.preference import Imitation, items
from personalign.alignment.stages import Adapted
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, Render
from personalign.policy.logprobs import Branches
from personalign.policy.reference import fingerprint

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class SFT(Adapted):
    """One LoRA adapter by the likelihood of the chosen answers (arXiv 2203.02155, section 3.1), on the prompts that
    generation renders. An answer that several users chose to one prompt counts once."""

    needs = ("pairs",)
    provides = ("policy.aligned",)
    paper = "arXiv 2203.02155, section 3.1"
    node = "alignment through feedback / training-time / standard"

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        before = policy.spec.aligned
        after = (*before, (self.adapter, 1.0))
        pairs = share(nonempty(data.pairs("train"), self.adapter), self.pairs)
        encoded = encode(policy, pairs, render, self.limits)
        rows = {self.adapter: list(dict.fromkeys(Branches(row.prompt, row.answers[:1]) for row in encoded))}

        def prepare() -> tuple[Imitation, dict[str, list[Item]]]:
            return Imitation(policy, rows, {self.adapter: after}), items(rows)

        content = ["sft", fingerprint(policy, before), self.adapters, rows[self.adapter]]
        lesson = Lesson(title=self.adapter, trainee=self.adapters, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, aligned=after)
        return figures
