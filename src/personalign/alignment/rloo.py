"""Reinforcement learning from what the guide says of the policy's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from personalign.alignment.batches import Item
from personalign.alignment.penalty import Penalty
from personalign.alignment.rollouts import LeaveOneOut, rendered
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Adapters
from personalign.alignment.training import Lesson, train
from personalign.contracts import (
    Data,
    Guide,
    Names,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Recall,
    Render,
    SeveralInt,
)
from personalign.plans import Sampling
from personalign.policy.lora import LoRAConfig
from personalign.policy.reference import standing
from personalign.runtime.seeds import derive

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting


class RLOO(Trained):
    """One LoRA adapter by REINFORCE with a leave-one-out baseline (arXiv 2402.14740) on the guide's reward.

    The prompts are those that generation renders for the users of the train split, the guide knows of them what memory
    recalled, and the reference is the policy as it stands before. `samples` answers are drawn to each prompt before
    every step, which is the only one that they serve. With `target_kl` the penalty on straying from the reference is
    adapted (arXiv 1909.08593, section 2.2).
    """

    needs = ("prompts", "reward.guide")
    provides = ("policy.aligned",)
    paper = "arXiv 2402.14740"
    node = "alignment through feedback / training-time / standard"

    def __init__(
        self,
        *,
        adapter: str,
        rank: PositiveInt,
        alpha: PositiveFloat,
        targets: Names,
        depth: PositiveFraction,
        samples: SeveralInt,
        beta: NonNegativeFloat,
        target_kl: PositiveFloat | None,
        horizon: PositiveInt,
        normalize: bool,
        side_by_side: PositiveInt,
        **trained: Unpack[TrainedKeys],
    ) -> None:
        super().__init__(**trained)
        # No dropout: the policy that learns is the one that answers.
        self.adapters = Adapters((adapter,), LoRAConfig(rank, alpha, 0.0, tuple(targets)), depth)
        self.adapter, self.samples, self.normalize, self.side_by_side = adapter, samples, normalize, side_by_side
        self.penalty = Penalty(beta, target_kl, horizon)
        self.guide: Guide | None = None

    def bind(self, guide: Guide | None, recall: Recall) -> None:
        self.guide = guide

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        """Raises UserError where the data ask nothing in their train split, or the guide gives no number."""
        if self.guide is None:
            raise RuntimeError("rloo learns from a guide: call bind first")
        before = policy.spec.aligned
        after = (*before, (self.adapter, 1.0))
        prompts = rendered(policy, data, render, self.limits, self.adapter)
        told = [[prompt.request.id, prompt.ids] for prompt in prompts]
        knobs = [self.samples, self.limits, self.penalty, self.normalize]
        content = ["rloo", standing(policy), before, self.adapters, knobs, told]
        content.append(self.guide.content([prompt.request for prompt in prompts]))
        course = LeaveOneOut(
            policy,
            prompts,
            self.guide,
            before,
            after,
            sampling=self._sampling(fitting.seed),
            side_by_side=self.side_by_side,
            penalty=replace(self.penalty),
            normalize=self.normalize,
        )
        items = {self.adapter: [Item(len(prompt.ids), prompt.request.messages) for prompt in prompts]}
        lesson = Lesson(
            title=self.adapter,
            trainee=self.adapters,
            content=content,
            recipe=self.recipe,
            prepare=lambda: (course, items),
            practice=course,
        )
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, aligned=after)
        return figures

    def _sampling(self, seed: int) -> Sampling:
        """The policy as it is: any other temperature would be another policy's answers."""
        drawn = derive(seed, "rollouts", self.adapter)
        return Sampling(temperature=1.0, max_new_tokens=self.limits.max_answer, n=self.samples, seed=drawn)
