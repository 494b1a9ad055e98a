"""The one decoder: every method of the framework is a plan, answered here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from personalign.decoding.prefixes import Prefixes, cut
from personalign.decoding.queue import Groups, Queue
from personalign.decoding.rows import Job, kind
from personalign.policy.policy import Policy
from personalign.types import Response


class Decoder:
    """Answers jobs, in groups that depend on the list of jobs alone, so that a run that is resumed after any group,
    with what is missing rerun whole, gives what an uninterrupted run gives.

    Args:
        policy: what the streams name; its routing belongs to the decoder while it runs.
        batch_size: answers of a group, which are decoded side by side until the last one has ended.
        token_budget: tokens of cache, rows x columns, of all that is in flight, without those of further models. With
            it a group is one job, and the next ones enter as others leave: answers are those of any other order up to
            rounding.
        prefix_tokens: tokens of cache that are kept of the beginnings which prompts share (see `prefixes`), for groups
            to come; 0 shares them within a group alone, and without it every prompt is fed whole.
    """

    def __init__(
        self, policy: Policy, batch_size: int, token_budget: int | None = None, prefix_tokens: int | None = None
    ) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.sharing = prefix_tokens is not None
        self.prefixes = Prefixes(policy, prefix_tokens or 0)

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs of one kind and number of answers together, in their order, `batch_size` answers each; one by one where
        there is a budget. Their plans are simplified, and their prompts cut where others of this list begin alike.

        Jobs with an equal greedy plan are one answer: they share a group and are decoded once.
        """
        jobs = [replace(job, plan=job.plan.simplified()) for job in jobs]
        if self.sharing:
            jobs = cut(self.policy, jobs)
        if self.token_budget is not None:
            return [[job] for job in jobs]
        kinds: dict[object, dict[object, list[Job]]] = {}
        for job in jobs:
            sampling = job.plan.sampling
            same = job.plan if sampling.temperature == 0.0 else (job.request, job.first)
            kinds.setdefault((kind(job.plan), sampling.n), {}).setdefault(same, []).append(job)
        return [group for alike in kinds.values() for group in self._split(list(alike.values()))]

    def _split(self, answers: list[list[Job]]) -> Iterator[list[Job]]:
        size = max(1, self.batch_size // answers[0][0].plan.sampling.n)
        for start in range(0, len(answers), size):
            yield [job for same in answers[start : start + size] for job in same]

    def queue(self, groups: Groups) -> Queue:
        """The answers to some of `groups`, each as soon as it is whole."""
        return Queue(self.policy, groups, self.token_budget, self.prefixes)

    def generate(self, jobs: Sequence[Job]) -> list[Response]:
        """All answers, in the order of the jobs, samples in order."""
        places = {(job.request, job.first + s): i for i, job in enumerate(jobs) for s in range(job.plan.sampling.n)}
        made = list(self.queue(self.groups(jobs)))
        return sorted(made, key=lambda response: (places[response.request, response.sample], response.sample))
