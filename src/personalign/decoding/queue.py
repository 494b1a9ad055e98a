"""Jobs of any kinds, one flow for each, and their answers as soon as they are whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from personalign.decoding.flow import Flow
from personalign.decoding.prefixes import Prefixes
from personalign.decoding.rows import Answer, Job, kind
from personalign.policy.policy import Policy
from personalign.types import Cost, Response

Groups = Sequence[Sequence[Job]]


class Queue:
    """Iterating answers the jobs, each answer handed out when it is whole; more may be added meanwhile, and the policy
    used for something else.

    Without a budget every group is a flow of its own, one after the other. With one, of so many tokens of cache, all
    jobs of one kind are one flow.
    """

    def __init__(self, policy: Policy, groups: Groups, budget: int | None, prefixes: Prefixes) -> None:
        """Raises UserError for a job that fits neither the model's context nor the budget."""
        self.policy, self.budget, self.prefixes = policy, budget, prefixes
        self._flows: list[Flow] = []  # the first one is under way
        self.add(groups)

    def add(self, groups: Groups) -> None:
        """More jobs, with simplified plans. They come before those that have not begun."""
        new: dict[object, list[Job]] = {}
        for group in groups:
            new.setdefault(object() if self.budget is None else kind(group[0].plan), []).extend(group)
        for flow in self._flows:
            flow.add(new.pop(flow.kind, []))
        begun = [Flow(self.policy, self.budget, one, self.prefixes) for one in new]
        for flow in begun:
            flow.add(new[flow.kind])
        self._flows[1:1] = begun

    def __iter__(self) -> Iterator[Response]:
        while self._flows:
            flow = self._flows[0]
            for answer in flow.advance():
                yield from self._responses(answer)
            if not flow:
                self._flows.remove(flow)

    def _responses(self, answer: Answer) -> Iterator[Response]:
        """The answer as it is given to each who asked for it."""
        new = len(answer.tokens)
        fed = answer.fed_guests
        fed += sum(len(row.source.ids) + answer.fed + answer.dropped for row in answer.rows)
        text = self.policy.decode(answer.tokens)
        for i, (job, sample) in enumerate(answer.given):
            reused = fed if i else answer.reused
            yield Response(
                request=job.request,
                text=text,
                sample=job.first + sample,
                tokens=tuple(answer.tokens),
                logprobs=tuple(answer.logprobs),
                stop="eos" if answer.stop == "eos" else "length",
                cost=Cost(fed, new, answer.seconds, reused),
            )
