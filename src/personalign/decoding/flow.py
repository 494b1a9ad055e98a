"""Answers on their way: those that wait, those in flight, and who may enter when."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from personalign.contracts import UserError
from personalign.decoding import rows as layout
from personalign.decoding.batch import Batch
from personalign.decoding.prefixes import Prefixes
from personalign.decoding.rows import Answer, Job, Row
from personalign.policy.policy import Policy

FREE = 4
"""Newcomers enter when this part of the budget is free: to prefill and join them costs as much as some steps."""
IDLE = 8
"""With a budget, rows of ended answers leave when they are this part of all: whenever some leave, all are copied."""


class Flow:
    """The answers to jobs of one kind (see `rows.kind`).

    Without a budget all that wait enter at once, when nobody is in flight. With one, of so many tokens of cache, they
    enter in their order as soon as there is room for all that they and those in flight can come to need.
    """

    def __init__(self, policy: Policy, budget: int | None, kind: object, prefixes: Prefixes) -> None:
        self.policy, self.budget, self.kind, self.prefixes = policy, budget, kind, prefixes
        self.waiting: deque[Answer] = deque()
        self.batch: Batch | None = None
        self._greedy: dict[object, Answer] = {}  # those on their way, by their plan

    def __len__(self) -> int:
        return len(self.waiting) + len(self._in_flight())

    def add(self, jobs: Sequence[Job]) -> None:
        """Jobs with simplified plans, ahead of those that wait: what goes on comes before what has not begun."""
        self.waiting.extendleft(reversed([answer for job in jobs for answer in self._answers(job)]))

    @torch.inference_mode()
    def advance(self) -> list[Answer]:
        """Go on until at least one answer is whole; there must be one on its way."""
        slices = self.policy.routing.slices
        ended: list[Answer] = []
        try:
            while not ended:
                ended = self._step()
        finally:
            self.policy.routing.slices = slices
        for answer in ended:
            self._greedy.pop(answer.job.plan, None)
        return ended

    def _step(self) -> list[Answer]:
        """The first token of those who enter, or the next one of those in flight; each pays its share of the time."""
        started = time.perf_counter()
        entering = self._entering()
        paying = entering or self._in_flight()
        ended = self._enter(entering) if entering else self._go_on()
        share = (time.perf_counter() - started) / len(paying)
        for answer in paying:
            answer.seconds += share
        if not self._in_flight():
            self.batch = None  # and its cache, before there is another
        return ended

    def _enter(self, answers: list[Answer]) -> list[Answer]:
        if self.batch is None:
            self.batch = Batch(self.policy, answers, self.prefixes)
            return self.batch.start()
        self.batch.leave()
        return self.batch.join(answers)

    def _go_on(self) -> list[Answer]:
        assert self.batch is not None, "somebody is on their way"
        if self.budget is None or self.batch.full() or self.batch.idle() >= 1 / IDLE:
            self.batch.leave()
        return self.batch.go_on()

    def _entering(self) -> list[Answer]:
        """Who enters now; they no longer wait."""
        entering: list[Answer] = []
        if not self.waiting:
            return entering
        rows = [row for answer in self._in_flight() for row in answer.rows]
        if rows and not self._open(rows):
            return entering
        while self.waiting and self._fits([*rows, *self.waiting[0].begin(self.policy)]):
            entering.append(self.waiting.popleft())
            rows += entering[-1].rows
        return entering

    def _open(self, rows: Sequence[Row]) -> bool:
        """Whether these rows in flight leave enough free. All streams speak at the same tokens of all answers."""
        if self.budget is None or self.batch is None:
            return False
        first, every = self.batch.alive[0], self.batch.plan.score_every
        return layout.cells(rows) <= self.budget * (1 - 1 / FREE) and len(first.tokens) % every == 1 % every

    def _fits(self, rows: Sequence[Row]) -> bool:
        return self.budget is None or layout.cells(rows) <= self.budget

    def _in_flight(self) -> list[Answer]:
        return [] if self.batch is None else self.batch.alive

    def _answers(self, job: Job) -> Iterator[Answer]:
        """The answers that are made for a job: a greedy plan's once, however many samples and jobs ask for it."""
        samples = [(job, sample) for sample in range(job.plan.sampling.n)]
        if job.plan in self._greedy:
            self._greedy[job.plan].given += samples
            return
        self._check(job)
        if job.plan.sampling.temperature == 0.0:
            self._greedy[job.plan] = answer = Answer(job, samples)
            yield answer
        else:
            yield from (Answer(job, [one]) for one in samples)

    def _check(self, job: Job) -> None:
        """Raise UserError where a job does not fit by itself."""
        rows = layout.rows_of(self.policy, Answer(job, []))
        layout.guests_of(self.policy, Answer(job, []))
        if not self._fits(rows):
            raise UserError(
                f"request {job.request!r} may need {layout.cells(rows)} tokens of cache, in {len(rows)} rows, and "
                f"decoding.token_budget={self.budget} is less: raise it, or lower sampling.max_new_tokens"
            )
