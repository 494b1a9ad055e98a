"""PAD stage 1 with K features: one adapter for every dimension of the pairs' labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Unpack

from torch import Tensor

from personalign.alignment.batches import Item
from personalign.alignment.contrasts import Contrasts
from personalign.alignment.preference import Preference, Rows, items, references
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Lesson, train
from personalign.contracts import Data, NonNegativeFloat, PositiveFloat, Render
from personalign.policy.reference import fingerprint

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class Pad(Adapted):
    """K features log pihat_k: one adapter a dimension, trained on pairs that are relabelled by that dimension
    (arXiv 2410.04070, eq. 9 with one-hot w; K features are our reading of eq. 4 to 10).

    All are trained side by side in one forward pass, and none depends on another. The reference is the base.
    """

    needs: ClassVar[tuple[str, ...]] = ("pairs", "labels")
    provides: ClassVar[tuple[str, ...]] = ("policy.features",)
    paper = "arXiv 2410.04070, eq. 9 and algorithm 1, stage 1 (K features: our reading)"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    stage: ClassVar[str] = "pad"

    def __init__(
        self,
        *,
        dimensions: list[str] | None,
        min_gap: NonNegativeFloat,
        beta: PositiveFloat,
        **adapted: Unpack[AdaptedKeys],
    ) -> None:
        super().__init__(**adapted)
        self.contrasts = Contrasts(self.stage, dimensions, min_gap, self.pairs, self.limits)
        self.beta = beta

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        rows = self.contrasts.rows(policy, data, render, self.adapter)
        names = dict(zip(rows, adapter_names(self.adapter, list(rows)), strict=True))
        deltas = {d: ((names[d], 1.0),) for d in rows}

        def prepare() -> tuple[Preference, dict[str, list[Item]]]:
            return Preference(policy, rows, self.reference(policy, rows), deltas, self.beta), items(rows)

        adapters = replace(self.adapters, names=tuple(names.values()))
        content = [self.stage, fingerprint(policy, ()), adapters, self.beta, rows]
        lesson = Lesson(title=self.adapter, trainee=adapters, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, features={**policy.spec.features, **deltas})
        return figures

    def reference(self, policy: Policy, rows: Rows) -> Mapping[str, Tensor]:
        """Log-probabilities [pairs, 2] of every dimension's pairs that the feature's own are measured against."""
        return references(policy, rows, ())


def adapter_names(prefix: str, dimensions: Sequence[str]) -> list[str]:
    """A name for each dimension's adapter, of characters that files and modules can bear."""
    names = [f"{prefix}-{re.sub(r'[^A-Za-z0-9_-]', '_', d)}" for d in dimensions]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
