"""BiPO: one steering vector a dimension, which works in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from torch import Tensor, tensor

from personalign.alignment.batches import Item
from personalign.alignment.contrasts import Contrasts
from personalign.alignment.pad import adapter_names
from personalign.alignment.preference import Preference, Rows, items, references
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Vectors
from personalign.alignment.training import Lesson, train
from personalign.contracts import Data, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Render
from personalign.policy.reference import fingerprint
from personalign.runtime.seeds import derive

if TYPE_CHECKING:
    from personalign.plans import Deltas
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class BiPO(Trained):
    """Bi-directional preference optimization (NeurIPS 2024): a vector v behind one layer A, for each dimension, by
    -log sigma(d beta (log pi(chosen | A + d v) / pi(chosen | A) - log pi(rejected | A + d v) / pi(rejected | A))),
    where d is 1 or -1 by chance, on pairs that are relabelled by the dimension.

    All vectors are trained side by side in one forward pass, and none depends on another. The policy as it stands,
    which is the reference, is frozen. d is drawn for each pair of a step, in the released code for each batch.
    Generation `steering` adds the vectors up.
    """

    needs = ("pairs", "labels")
    provides = ("policy.vectors",)
    paper = "BiPO, NeurIPS 2024; its released code"
    node = "alignment through feedback / training-time / parameter-efficient"

    def __init__(
        self,
        *,
        vector: str,
        height: Fraction,
        dimensions: list[str] | None,
        min_gap: NonNegativeFloat,
        pairs: PositiveInt | None,
        beta: PositiveFloat,
        **trained: Unpack[TrainedKeys],
    ) -> None:
        super().__init__(**trained)
        self.contrasts = Contrasts("bipo", dimensions, min_gap, pairs, self.limits)
        self.vector, self.height, self.beta = vector, height, beta

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        before = policy.spec.aligned
        rows = self.contrasts.rows(policy, data, render, self.vector)
        names = dict(zip(rows, adapter_names(self.vector, list(rows)), strict=True))

        def prepare() -> tuple[BothWays, dict[str, list[Item]]]:
            reference = references(policy, rows, before)
            return BothWays(policy, rows, reference, names, before, self.beta, fitting.seed), items(rows)

        vectors = Vectors(tuple(names.values()), self.height)
        content = ["bipo", fingerprint(policy, before), vectors, self.beta, rows]
        lesson = Lesson(title=self.vector, trainee=vectors, content=content, recipe=self.recipe, prepare=prepare)
        figures = train(policy, fitting, lesson)
        found = {d: ((name, 1.0),) for d, name in names.items()}
        policy.spec = replace(policy.spec, vectors={**policy.spec.vectors, **found})
        return figures


class BothWays(Preference):
    """`Preference` of rows that are steered forwards or backwards, and judged accordingly: -log sigma(d beta m_d).

    `names` are the groups' vectors, on top of `before`. The direction of a row depends on the seed, its group, its
    number and the step alone, so that training may stop anywhere and be cut into any micro-batches.
    """

    def __init__(
        self,
        policy: Policy,
        rows: Rows,
        reference: Mapping[str, Tensor],
        names: Mapping[str, str],
        before: Deltas,
        beta: float,
        seed: int,
    ) -> None:
        super().__init__(policy, rows, reference, {}, beta)
        self.names, self.before, self.seed, self.step = names, before, seed, 0

    def at(self, step: int) -> None:
        self.step = step

    def direction(self, group: str, row: int) -> float:
        """1 or -1 with equal chances."""
        return 1.0 if derive(self.seed, "direction", group, str(self.step), str(row)) % 2 else -1.0

    def _route(self, group: str, row: int) -> Deltas:
        return (*self.before, (self.names[group], self.direction(group, row)))

    def _margins(self, group: str, some: list[int], sums: Tensor) -> Tensor:
        directions = tensor([self.direction(group, row) for row in some], device=sums.device)
        return directions * super()._margins(group, some, sums)
