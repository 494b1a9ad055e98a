"""Steering vectors without training: what the hidden states of two kinds of answers differ by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from personalign.alignment.batches import Limits
from personalign.alignment.contrasts import Contrasts
from personalign.alignment.pad import adapter_names
from personalign.alignment.trainees import Vectors
from personalign.contracts import Data, Fraction, NonNegativeFloat, PositiveInt, Render, Stage
from personalign.policy.reference import answer_features

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class ActivationDifference(Stage):
    """A steering vector a dimension: the mean hidden state behind one layer over answers that have more of it, minus
    that over the other answers of the same pairs (contrastive activation addition, arXiv 2312.06681).

    An answer's hidden state is the mean over its tokens, or that at its last one, under the policy as it stands; the
    paper takes the token of a multiple choice. Nothing is learned: the readings are kept in the policy's cache, from
    which the vectors are made again in the same bytes. Generation `steering` adds them up.
    """

    needs = ("pairs", "labels")
    provides = ("policy.vectors",)
    paper = "arXiv 2312.06681"
    node = "alignment through feedback / training-time / parameter-efficient"

    def __init__(
        self,
        *,
        vector: str,
        height: Fraction,
        pooling: Literal["last", "mean"],
        dimensions: list[str] | None,
        min_gap: NonNegativeFloat,
        pairs: PositiveInt | None,
        max_prompt: PositiveInt,
        max_answer: PositiveInt,
    ) -> None:
        limits = Limits(max_prompt, max_answer)
        self.contrasts = Contrasts("activation_difference", dimensions, min_gap, pairs, limits)
        self.vector, self.height, self.pooling = vector, height, pooling

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        """The figures are the vectors' lengths, and in how many of the pairs the states differ in their direction."""
        rows = self.contrasts.rows(policy, data, render, self.vector)
        names = dict(zip(rows, adapter_names(self.vector, list(rows)), strict=True))
        vectors = Vectors(tuple(names.values()), self.height)
        vectors.check(policy)
        before, layer = policy.spec.aligned, vectors.layer(policy)
        flat = [row for some in rows.values() for row in some]
        read = answer_features(policy, flat, before, self.pooling, policy.cache, "hidden states of pairs", layer)
        differences = torch.stack([chosen - rejected for chosen, rejected in read])
        vectors.create(policy, fitting.seed)
        vectors.freeze(policy)
        figures = {}
        sizes = [len(some) for some in rows.values()]
        for dimension, own in zip(rows, torch.split(differences, sizes), strict=True):
            mean = own.mean(0)
            with torch.no_grad():
                policy.vectors[names[dimension]].vector.copy_(mean)
            figures[f"{dimension}/length"] = float(mean.norm())
            figures[f"{dimension}/accuracy"] = float((own @ mean > 0).float().mean())
        found = {d: ((name, 1.0),) for d, name in names.items()}
        policy.spec = replace(policy.spec, vectors={**policy.spec.vectors, **found})
        return figures
