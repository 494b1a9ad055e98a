"""Direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from personalign.alignment.batches import Item, encode
from personalign.alignment.preference import Preference, items, references
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Lesson, nonempty, share, train
from personalign.contracts import Data, NonNegativeFloat, PositiveFloat, Render
from personalign.policy.reference import fingerprint

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class DPO(Adapted):
    """One LoRA adapter from all users' pairs by the DPO loss (arXiv 2305.18290, eq. 7).

    The prompts are those that generation renders: with a preference prompt the policy is conditioned on the user,
    with the plain one it is one policy for all (pooled). The reference is the policy as it stands before. `imitation`
    weighs the chosen answer's negative log-probability a token beside the loss (DPO + NLL, arXiv 2404.19733).
    """

    needs = ("pairs",)
    provides = ("policy.aligned",)
    paper = "arXiv 2305.18290, eq. 7"
    node = "alignment through feedback / training-time / standard"

    def __init__(self, *, beta: PositiveFloat, imitation: NonNegativeFloat, **adapted: Unpack[AdaptedKeys]) -> None:
        super().__init__(**adapted)
        self.beta, self.imitation = beta, imitation

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        before = policy.spec.aligned
        after = (*before, (self.adapter, 1.0))
        pairs = share(nonempty(data.pairs("train"), self.adapter), self.pairs)
        rows = {self.adapter: encode(policy, pairs, render, self.limits)}

        def prepare() -> tuple[Preference, dict[str, list[Item]]]:
            reference = references(policy, rows, before)
            deltas = {self.adapter: after}
            return Preference(policy, rows, reference, deltas, self.beta, imitation=self.imitation), items(rows)

        content = ["dpo", fingerprint(policy, before), self.adapters, self.beta, self.imitation, rows]
        lesson = Lesson(title=self.adapter, trainee=self.adapters, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, aligned=after)
        return figures
