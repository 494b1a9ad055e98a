"""Answers that the policy gives before a step, what the guide makes of them, and the objective on both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from personalign.alignment.batches import Indices, Limits
from personalign.alignment.losses import leave_one_out, reinforce_loss
from personalign.alignment.penalty import Penalty
from personalign.contracts import Data, Guide, Render, UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Deltas, Plan, Sampling, Stream, Tokens
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.policy.truncation import encode_within
from personalign.runtime.seeds import derive
from personalign.types import Request, Response, Score

SMALL = 1e-4  # beside the spread of the advantages, as in TRL


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a user asks, and the ids of what generation makes of it."""

    request: Request
    ids: tuple[int, ...]


def rendered(policy: Policy, data: Data, render: Render, limits: Limits, title: str) -> list[Prompt]:
    """What the users of the train split ask, as generation renders it. Raises UserError where they ask nothing."""
    limits.check(policy)
    requests = data.requests("train")
    if not requests:
        raise UserError(f"stage {title!r} has no request to learn from: the data ask nothing in their train split")
    return [Prompt(one, tuple(encode_within(policy, render(one), limits.max_prompt, one.id))) for one in requests]


def answers(
    policy: Policy, prompts: Mapping[int, Prompt], deltas: Deltas, sampling: Sampling, side_by_side: int
) -> dict[int, list[Response]]:
    """`sampling.n` answers of the policy under `deltas` to each prompt, whose number and the seed they depend on."""
    streams = {n: Stream((Tokens(prompt.ids),), 1.0, deltas) for n, prompt in prompts.items()}
    jobs = [Job(str(n), Plan((stream,), sampling=sampling)) for n, stream in streams.items()]
    found: dict[int, list[Response]] = {n: [] for n in prompts}
    for response in Decoder(policy, side_by_side).generate(jobs):
        found[int(response.request)].append(response)
    return found


def scores(guide: Guide, prompts: Sequence[Prompt], made: Sequence[Sequence[Response]]) -> list[list[Score]]:
    """What the guide makes of the answers to each prompt. Raises UserError where a total is no number."""
    asked = [(p.request, [r.text for r in some]) for p, some in zip(prompts, made, strict=True)]
    found = guide.score(asked)
    for prompt, some in zip(prompts, found, strict=True):
        totals = [score.total for score in some]
        if not all(map(math.isfinite, totals)):
            raise UserError(f"the guide rates answers to {prompt.request.id!r} with {totals}: choose another guide")
    return found


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The k answers to each of some prompts: rows of token ids, and by answer [prompts, k] the guide's rewards, log
    pi/pi_ref in nats, the advantages, and whether it came to its end."""

    rows: list[Branches]
    rewards: Tensor
    kl: Tensor
    advantages: Tensor
    ended: Tensor


class LeaveOneOut:
    """REINFORCE with the mean of the prompt's other answers as baseline: RLOO (arXiv 2402.14740).

    R(y) = r(y) - beta log pi(y)/pi_ref(y) of a whole answer, drawn from the policy as it is, at temperature 1. Before
    a step all its answers are drawn and scored, each rank its own; what they are depends on the seed, the step and
    the number of the prompt, and not on what is decoded beside them (up to rounding). With `normalize` the advantages
    are divided by their standard deviation over the whole step.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        guide: Guide,
        before: Deltas,
        after: Deltas,
        *,
        sampling: Sampling,
        side_by_side: int,
        penalty: Penalty,
        normalize: bool,
    ) -> None:
        """`before` is the reference, `after` learns; `sampling.n` is k; `side_by_side` answers are decoded at once."""
        self.policy, self.prompts, self.guide, self.before, self.after = policy, prompts, guide, before, after
        self.sampling, self.side_by_side = sampling, side_by_side
        self.penalty, self.normalize = penalty, normalize
        self.beta = penalty.beta  # of the present step
        self.places: dict[int, int] = {}  # of the present step's prompts among its rollouts
        self.made: Rollouts

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.penalty.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.penalty.beta = state["beta"]

    def begin(self, step: int, rows: Indices) -> None:
        """Draw and score the answers of a step."""
        numbers = [number for some in rows.values() for number in some]
        self.beta = self.penalty.beta
        answers = self._answers(numbers, replace(self.sampling, seed=derive(self.sampling.seed, str(step))))
        self.places = {number: place for place, number in enumerate(numbers)}
        self.made = self._scored([self.prompts[number] for number in numbers], answers)
        kl, _, count = self._over_ranks(self.made.kl)
        self.penalty.update(kl, count)

    def _answers(self, numbers: Sequence[int], sampling: Sampling) -> list[list[Response]]:
        """k answers to each prompt, drawn from the policy; a prompt that comes twice has the same ones twice."""
        prompts = {number: self.prompts[number] for number in numbers}
        found = answers(self.policy, prompts, self.after, sampling, self.side_by_side)
        return [found[number] for number in numbers]

    def _scored(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> Rollouts:
        """The rollouts of one answer list a prompt."""
        rows = [Branches(p.ids, tuple(r.tokens for r in some)) for p, some in zip(prompts, answers, strict=True)]
        rewards = self._rewards(prompts, answers)
        own = torch.tensor([[sum(r.logprobs) for r in some] for some in answers], dtype=torch.float64)
        reference = sequence_logprobs(self.policy, rows, self.before, None, "reference log-probs")
        kl = own - reference.double()
        advantages = leave_one_out(rewards - self.beta * kl)
        if self.normalize:
            advantages = advantages / (self._over_ranks(advantages)[1] + SMALL)
        ended = torch.tensor([[float(r.stop == "eos") for r in some] for some in answers])
        return Rollouts(rows, rewards, kl, advantages, ended)

    def _rewards(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> Tensor:
        """The guide's, float64 [prompts, k]. Raises UserError where one is no number."""
        totals = [[score.total for score in some] for some in scores(self.guide, prompts, answers)]
        return torch.tensor(totals, dtype=torch.float64)

    def __call__(self, batch: Indices) -> tuple[Tensor, Mapping[str, Tensor]]:
        places = [self.places[number] for some in batch.values() for number in some]
        made = self.made
        with self.policy.using(self.after):
            logp = answer_logprobs(self.policy, [made.rows[place] for place in places])
        sums = torch.stack([one.sum() for one in logp]).view(len(places), -1)
        loss = reinforce_loss(sums, made.advantages[places].to(sums)).mean()
        figures = {
            "reward": made.rewards[places].mean(),
            "spread": made.rewards[places].std(-1).mean(),
            "kl": made.kl[places].mean(),
            "beta": torch.tensor(self.beta),
            "tokens": torch.tensor(sum(map(len, logp)) / len(logp)),
            "ended": made.ended[places].mean(),
        }
        return loss, {name: value.to(loss) for name, value in figures.items()}

    def _over_ranks(self, values: Tensor) -> tuple[float, float, int]:
        """Mean, standard deviation (of a sample) and number of the values of all ranks."""
        told = [float(values.sum()), float(values.square().sum()), float(values.numel())]
        sums = torch.tensor(told, dtype=torch.float64, device=self.policy.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        total, square, count = sums.tolist()
        mean = total / count
        return mean, math.sqrt(max(square - count * mean**2, 0.0) / (count - 1)), int(count)
