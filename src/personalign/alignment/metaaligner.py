"""MetaAligner's three stages: a corrector warmed up on pairs, then shown what is equal, then what is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from personalign.alignment.aligner import corrections, edited
from personalign.alignment.learner import Objective
from personalign.alignment.preference import Imitation, items
from personalign.alignment.stages import Adapted, AdaptedKeys
from personalign.alignment.training import Items, Lesson, nonempty, share, train
from personalign.contracts import Data, Fraction, NonNegativeFloat, PositiveInt, Render, UserError
from personalign.plans import Deltas
from personalign.policy.logprobs import Branches
from personalign.policy.reference import fingerprint
from personalign.types import Pair

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class MetaAligner(Adapted):
    """A corrector by likelihood in three stages (MetaAligner, arXiv 2403.17141), each a LoRA adapter on top of those
    before it, where the paper goes on with the same weights: `warm_up`, a part of the pairs; `equal`, the pairs whose
    answers differ by no more than `equal_gap` in some dimensions; `contrast`, all pairs.

    In the first and the last the chosen answer is learned behind the prompt that shows the rejected one and what the
    user prefers; in the second, as in its released code, behind that which shows the rejected one and names those
    dimensions. Raises UserError where no pair is equal in anything.
    """

    needs = ("pairs", "labels", "prompt.draft", "prompt.equal")
    provides = ("policy.corrector",)
    paper = "arXiv 2403.17141 (MetaAligner); its released code"
    node = "alignment through feedback / inference-time / output refinement"

    def __init__(
        self,
        *,
        warm_up: Fraction,
        warm_up_steps: PositiveInt,
        equal_gap: NonNegativeFloat,
        equal_steps: PositiveInt,
        **adapted: Unpack[AdaptedKeys],
    ) -> None:
        super().__init__(**adapted)
        self.warm_up, self.equal_gap = warm_up, equal_gap
        self.steps = {"warm_up": warm_up_steps, "equal": equal_steps, "contrast": self.recipe.steps}

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        self.limits.check(policy)
        pairs = share(nonempty(data.pairs("train"), self.adapter), self.pairs)
        first = share(pairs, max(1, round(self.warm_up * len(pairs))))
        rows = {
            "warm_up": corrections(policy, first, render, self.limits),
            "equal": self._equals(policy, pairs, render),
            "contrast": corrections(policy, pairs, render, self.limits),
        }
        corrector: Deltas = ()
        figures: dict[str, float] = {}
        with ExitStack() as undo:
            for stage, some in rows.items():
                lesson = self._lesson(policy, stage, some, corrector)
                figures |= {f"{stage}/{name}": value for name, value in train(policy, fitting, lesson).items()}
                undo.callback(lesson.trainee.discard, policy)
                corrector = (*corrector, (lesson.title, 1.0))
            undo.pop_all()
        policy.spec = replace(policy.spec, corrector=corrector)
        return {"steps": float(sum(self.steps.values())), **figures}

    def _lesson(self, policy: Policy, stage: str, some: Sequence[Branches], before: Deltas) -> Lesson:
        name = f"{self.adapter}-{stage}"
        rows, adapters = {name: some}, replace(self.adapters, names=(name,))

        def prepare() -> tuple[Objective, Items]:
            return Imitation(policy, rows, {name: (*before, (name, 1.0))}), items(rows)

        content = ["metaaligner", stage, fingerprint(policy, before), adapters, some]
        recipe = replace(self.recipe, steps=self.steps[stage])
        return Lesson(title=name, trainee=adapters, content=content, recipe=recipe, prepare=prepare)

    def _equals(self, policy: Policy, pairs: Sequence[Pair], render: Render) -> list[Branches]:
        """What the second stage reads: pairs that are equal in something."""
        alike = [(pair, [d for d, label in pair.labels.items() if abs(label) <= self.equal_gap]) for pair in pairs]
        found = [(pair, dimensions) for pair, dimensions in alike if dimensions]
        if not found:
            raise UserError(
                f"no pair's answers lie within alignment.metaaligner.equal_gap={self.equal_gap:g} in any dimension, so "
                "that nothing shows what is equal: raise it, or choose alignment=aligner"
            )
        prompts = [render(pair.request, draft=pair.rejected, equal=dimensions) for pair, dimensions in found]
        return edited(policy, [pair for pair, _ in found], prompts, self.limits)
