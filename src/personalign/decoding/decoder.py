"""The one decoder: every method of the framework is a plan, answered here in groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from personalign.decoding import rows as layout
from personalign.decoding.batch import Batch
from personalign.decoding.rows import Answer, Job
from personalign.policy.policy import Policy
from personalign.runtime.seeds import derive
from personalign.types import Cost, Response

Done = Callable[[list[Response]], None]


class Decoder:
    """Answers jobs in groups. Groups depend on the list of jobs alone, so that a run that is resumed after any
    group, with what is missing rerun whole, gives what an uninterrupted run gives.

    Args:
        policy: what the streams name; its routing belongs to the decoder while it runs.
        batch_size: answers per group.
    """

    def __init__(self, policy: Policy, batch_size: int) -> None:
        self.policy = policy
        self.batch_size = batch_size

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs of one kind (candidates, sampling, interval, combination) together, in their order, `batch_size`
        answers each.

        Jobs with an equal greedy plan are one answer: they share a group and are decoded once.
        """
        kinds: dict[object, dict[object, list[Job]]] = {}
        for job in jobs:
            plan = job.plan.simplified()
            kind = (replace(plan.candidates, stream=0), replace(plan.sampling, seed=0), plan.score_every, plan.combine)
            same = plan if plan.sampling.temperature == 0.0 else (job.request, job.first)
            kinds.setdefault(kind, {}).setdefault(same, []).append(replace(job, plan=plan))
        return [group for alike in kinds.values() for group in self._split(list(alike.values()))]

    def _split(self, answers: list[list[Job]]) -> Iterator[list[Job]]:
        size = max(1, self.batch_size // answers[0][0].plan.sampling.n)
        for start in range(0, len(answers), size):
            yield [job for same in answers[start : start + size] for job in same]

    def generate(self, jobs: Sequence[Job], on_group: Done | None = None) -> list[Response]:
        """All answers in the order of the groups; `on_group` sees each group's answers as soon as they are whole."""
        answers: list[Response] = []
        for group in self.groups(jobs):
            answers += self.answer(group)
            if on_group:
                on_group(answers[-sum(job.plan.sampling.n for job in group) :])
        return answers

    @torch.inference_mode()
    def answer(self, group: Sequence[Job]) -> list[Response]:
        """The answers of one group: jobs in order, samples in order. Equal greedy plans are decoded once."""
        started = time.perf_counter()
        greedy = group[0].plan.sampling.temperature == 0.0
        leader = {job.plan: job for job in reversed(group)} if greedy else {}
        unique = [job for job in group if leader.get(job.plan, job) is job]
        slices = self.policy.routing.slices
        try:
            made = Batch(self.policy, [self._start(job, s) for job in unique for s in self._samples(job)]).run()
        finally:
            self.policy.routing.slices = slices
        seconds = (time.perf_counter() - started) / max(1, sum(len(a.tokens) for a in made))
        by_plan = {(id(a.job), a.sample): a for a in made}
        found = [(job, s, leader.get(job.plan, job)) for job in group for s in range(job.plan.sampling.n)]
        return [self._response(job, s, by_plan[id(lead), 0 if greedy else s], seconds) for job, s, lead in found]

    def _samples(self, job: Job) -> range:
        return range(1 if job.plan.sampling.temperature == 0.0 else job.plan.sampling.n)

    def _start(self, job: Job, sample: int) -> Answer:
        seed = derive(job.plan.sampling.seed, job.request, str(job.first + sample))
        return Answer(job, sample, torch.Generator().manual_seed(seed), 0)

    def _response(self, job: Job, sample: int, answer: Answer, seconds: float) -> Response:
        new = len(answer.tokens)
        text = self.policy.decode(answer.tokens)
        fed = sum(len(layout.prompt_ids(self.policy, s)) + max(0, new - 1) for s in job.plan.streams)
        return Response(
            request=job.request,
            text=text,
            sample=job.first + sample,
            tokens=tuple(answer.tokens),
            logprobs=tuple(answer.logprobs),
            stop="eos" if answer.stop == "eos" else "length",
            cost=Cost(fed, new, seconds * new),
        )
