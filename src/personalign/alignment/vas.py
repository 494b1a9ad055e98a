"""The value of an answer's beginnings: how much of the guide's reward the policy's own answers come to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from personalign.alignment.batches import Indices, Item
from personalign.alignment.losses import td_lambda
from personalign.alignment.rollouts import Prompt, answers, rendered, scores
from personalign.alignment.stages import Trained, TrainedKeys
from personalign.alignment.trainees import Head
from personalign.alignment.training import Lesson, train
from personalign.contracts import Data, Fraction, Guide, PositiveInt, Recall, Render, UserError
from personalign.plans import Rater, Sampling
from personalign.policy.features import Reader
from personalign.policy.logprobs import Branches, batches, token_states
from personalign.policy.reference import MAX_TOKENS, standing
from personalign.policy.reward_heads import ValueHead
from personalign.runtime.progress import track
from personalign.runtime.seeds import derive
from personalign.types import Score

if TYPE_CHECKING:
    from personalign.policy.policy import Policy
    from personalign.runtime.fitting import Fitting

HEAD = "vas"


class VASStage(Trained):
    """A linear value head on the states of the policy, which is frozen, by TD(lambda) on its own answers (VAS, arXiv
    2405.06639); the paper's value model is a network of its own.

    The prompts are those that generation renders for the users of the train split. The head has a value for every
    dimension that the guide rates, or one for its total where it names none. Generation `vas` reads it.
    """

    needs = ("prompts", "reward.guide")
    provides = ("policy.heads.vas",)
    paper = "VAS, arXiv 2405.06639"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    def __init__(
        self,
        *,
        dimensions: list[str] | None,
        samples: PositiveInt,
        prompts: PositiveInt | None,
        trace: Fraction,
        side_by_side: PositiveInt,
        **trained: Unpack[TrainedKeys],
    ) -> None:
        super().__init__(**trained)
        self.dimensions, self.samples, self.prompts, self.trace = dimensions, samples, prompts, trace
        self.side_by_side = side_by_side
        self.guide: Guide | None = None

    def bind(self, guide: Guide | None, recall: Recall) -> None:
        self.guide = guide

    def fit(self, policy: Policy, data: Data, render: Render, fitting: Fitting) -> Mapping[str, float]:
        """Raises UserError where the data ask nothing in their train split, or the guide rates no such dimension."""
        if self.guide is None:
            raise RuntimeError("vas learns from a guide: call bind first")
        prompts = rendered(policy, data, render, self.limits, HEAD)[: self.prompts]
        reader = Reader(policy.spec.aligned, "last", self.limits.max_prompt, self.limits.max_answer)
        names = self._names(self.guide, prompts[0])
        head = ValueHead(policy.embedding.embedding_dim, reader, names)
        told = [[prompt.request.id, prompt.ids] for prompt in prompts]
        content = [HEAD, standing(policy), reader, names, self.samples, self.trace, told]
        content.append(self.guide.content([prompt.request for prompt in prompts]))
        lesson = Lesson(
            title=HEAD,
            trainee=Head(HEAD, head),
            content=content,
            recipe=self.recipe,
            prepare=lambda: self._prepared(policy, prompts, head, fitting.seed),
            light=True,
        )
        figures = train(policy, fitting, lesson)
        policy.spec = replace(policy.spec, raters={**policy.spec.raters, HEAD: Rater(reader.deltas, names)})
        return figures

    def _names(self, guide: Guide, prompt: Prompt) -> tuple[str, ...]:
        """The dimensions that are asked for, or all that the guide rates."""
        ((score,),) = guide.score([(prompt.request, [""])])
        if unknown := [name for name in self.dimensions or () if name not in score.dimensions]:
            rated = ", ".join(score.dimensions) or "none"
            raise UserError(f"stage {HEAD!r} wants values of {unknown[0]!r}, and the guide rates {rated}")
        return tuple(score.dimensions if self.dimensions is None else self.dimensions)

    def _prepared(
        self, policy: Policy, prompts: Sequence[Prompt], head: ValueHead, seed: int
    ) -> tuple[Beginnings, dict[str, list[Item]]]:
        assert self.guide is not None
        drawn = Sampling(
            1.0, max_new_tokens=self.limits.max_answer, n=self.samples, seed=derive(seed, "rollouts", HEAD)
        )
        found = answers(policy, dict(enumerate(prompts)), head.reader.deltas, drawn, self.side_by_side)
        made = [found[number] for number in range(len(prompts))]
        rows = [Branches(p.ids, tuple(r.tokens for r in some)) for p, some in zip(prompts, made, strict=True)]
        states = [one for some in _states(policy, rows, head.reader) for one in some]
        head.standardise(torch.cat(states))
        rated = [_rewards(score, head.dimensions) for some in scores(self.guide, prompts, made) for score in some]
        items = [Item(len(answer), row.prompt) for row in rows for answer in row.answers]
        return Beginnings(head, states, torch.tensor(rated), self.trace), {HEAD: items}


def _rewards(score: Score, dimensions: Sequence[str]) -> list[float]:
    return [score.dimensions[name] for name in dimensions] or [score.total]


@torch.no_grad()
def _states(policy: Policy, rows: Sequence[Branches], reader: Reader) -> list[list[Tensor]]:
    """By row, the states of every answer's tokens: float32 [tokens, width], on the CPU."""
    found: dict[int, list[Tensor]] = {}
    with track("states of answers", sum(row.length for row in rows)) as bar, policy.using(reader.deltas):
        for batch in batches(rows, MAX_TOKENS):
            states = iter(token_states(policy, [rows[i] for i in batch]))
            found |= {i: [next(states).cpu() for _ in rows[i].answers] for i in batch}
            bar.advance(sum(rows[i].length for i in batch))
    return [found[i] for i in range(len(rows))]


class Beginnings:
    """The squared error of values and their TD(lambda) targets: mean over answers of the mean over their tokens."""

    def __init__(self, head: ValueHead, states: Sequence[Tensor], rewards: Tensor, trace: float) -> None:
        """`states` [tokens, width] of every answer, `rewards` [answers, dimensions]."""
        self.head, self.states, self.rewards, self.trace = head, states, rewards, trace
        self.spread = rewards.var(0, unbiased=False).mean().clamp(min=1e-12)

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        device, rows = self.head.mean.device, batch[HEAD]
        states = pad_sequence([self.states[row] for row in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(self.states[row]) for row in rows], device=device)
        rewards = self.rewards[rows].to(device, states.dtype)
        values = self.head(states)
        targets = td_lambda(values.detach(), rewards, lengths, self.trace)
        inside = (torch.arange(states.shape[1], device=device) < lengths[:, None]).to(values)
        share = inside / lengths[:, None] / len(rows)

        def mean(errors: Tensor) -> Tensor:
            return (errors.square().mean(-1) * share).sum()

        left = mean(values.detach() - rewards[:, None]) / self.spread.to(values)
        return mean(values - targets), {"reward": rewards.mean(), "explained": 1.0 - left}
