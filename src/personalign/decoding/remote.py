"""Plans answered by a chat completions endpoint: those that are one prompt and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from personalign.contracts import UserError
from personalign.decoding.rows import Job
from personalign.plans import Chat, Plan
from personalign.runtime.endpoint import Endpoint, Reply
from personalign.runtime.seeds import derive
from personalign.types import Cost, Messages, Response

Groups = Sequence[Sequence[Job]]
SEEDS = 1 << 31  # seeds are below it: some endpoints read no larger number


def refuses(plan: Plan) -> str | None:
    """Why an endpoint cannot answer a (simplified) plan, in words; None where it can."""
    (stream, *others), sampling = plan.streams, plan.sampling
    if others or stream.weight != 1.0:
        return f"its plan weighs the log-probabilities of {len(plan.streams)} streams at every token"
    if stream.deltas or stream.head or stream.model:
        return "its plan asks for adapters, a head or a further model"
    if len(stream.prompt) != 1 or not isinstance(stream.prompt[0], Chat):
        return "its prompt holds more than chat messages"
    if plan.candidates.rule != "all":
        return f"its plan restricts the candidates ({plan.candidates.rule})"
    return "sampling.top_k is no part of that interface: set sampling.top_k=0" if sampling.top_k else None


@dataclass(frozen=True)
class Question:
    """One answer to be made: the chat, and how it is drawn."""

    messages: Messages
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None

    def ask(self, endpoint: Endpoint, stop: threading.Event) -> tuple[Reply, float]:
        """The reply and its seconds; what was answered before is taken from the disk, in none."""
        chat = [{"role": m.role, "content": m.content} for m in self.messages]
        content = ["answer", chat, self.max_tokens, self.temperature, self.top_p, self.seed]
        known = endpoint.kept(content)
        if known is not None and known.keys() >= set(Reply._fields):
            return Reply(*(known[name] for name in Reply._fields)), 0.0
        started = time.perf_counter()
        draws = {"temperature": self.temperature, "top_p": self.top_p if self.top_p < 1.0 else None, "seed": self.seed}
        reply = endpoint.say(chat, self.max_tokens, stop, **draws)
        endpoint.keep(content, reply._asdict())
        return reply, time.perf_counter() - started


def questions(jobs: Sequence[Job]) -> dict[Question, list[tuple[Job, int]]]:
    """What is to be asked, with the (job, sample) to which each answer is given: several where greedy plans are
    equal."""
    found: dict[Question, list[tuple[Job, int]]] = {}
    for job in jobs:
        sampling = job.plan.sampling
        (segment,) = job.plan.streams[0].prompt
        assert isinstance(segment, Chat), "other prompts are refused"
        for sample in range(sampling.n):
            number = job.first + sample
            seed = None if sampling.temperature == 0.0 else derive(sampling.seed, job.request, str(number)) % SEEDS
            asked = Question(segment.messages, sampling.max_new_tokens, sampling.temperature, sampling.top_p, seed)
            found.setdefault(asked, []).append((job, number))
    return found


class RemoteDecoder:
    """Answers jobs as `Decoder` does, by asking `endpoint` for each answer.

    A draw is seeded as ours are, by seed, request and sample: whether equal seeds give equal answers is up to the
    endpoint, but what it has answered is kept and not asked again. Responses have no token ids and no log-probs.
    """

    def __init__(self, endpoint: Endpoint, batch_size: int) -> None:
        self.endpoint, self.batch_size = endpoint, batch_size

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """`batch_size` jobs each, with simplified plans. Raises UserError, before anything is asked, for a plan that
        an endpoint cannot answer."""
        jobs = [replace(job, plan=job.plan.simplified()) for job in jobs]
        for job in jobs:
            if reason := refuses(job.plan):
                raise UserError(
                    f"request {job.request!r} cannot be answered by model=endpoint: {reason}; choose a model whose "
                    "weights are here (model=hf), or a generation by prompt alone"
                )
        return [jobs[start : start + self.batch_size] for start in range(0, len(jobs), self.batch_size)]

    def queue(self, groups: Groups) -> RemoteQueue:
        """The answers to some of `groups`, each as soon as it is whole."""
        return RemoteQueue(self.endpoint, groups)

    def generate(self, jobs: Sequence[Job]) -> list[Response]:
        """All answers, in the order of the jobs, samples in order."""
        places = {(job.request, job.first + s): i for i, job in enumerate(jobs) for s in range(job.plan.sampling.n)}
        made = list(self.queue(self.groups(jobs)))
        return sorted(made, key=lambda response: (places[response.request, response.sample], response.sample))


class RemoteQueue:
    """Iterating answers the jobs, a group at a time, its questions side by side; more may be added meanwhile."""

    def __init__(self, endpoint: Endpoint, groups: Groups) -> None:
        self.endpoint = endpoint
        self._waiting = [list(group) for group in groups]

    def add(self, groups: Groups) -> None:
        """More jobs, before those that have not begun."""
        self._waiting[:0] = [list(group) for group in groups]

    def __iter__(self) -> Iterator[Response]:
        while self._waiting:
            asked = questions(self._waiting.pop(0))
            answers = dict(self.endpoint.each(list(asked), self._ask))
            for question, given in asked.items():
                reply, seconds = answers[question]
                for job, sample in given:
                    yield Response(
                        request=job.request,
                        text=reply.text,
                        sample=sample,
                        stop="length" if reply.cut else "eos",
                        cost=Cost(reply.read + reply.made, reply.made, seconds),
                    )

    def _ask(self, question: Question, stop: threading.Event) -> tuple[Reply, float]:
        return question.ask(self.endpoint, stop)
