"""The rows of a batch: which streams there are, what is prefilled once, how padding is masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from personalign.contracts import UserError
from personalign.policy.policy import Policy
from personalign.runtime.seeds import derive
from personalign.types import Chat, Deltas, Plan, Segment, Soft, Stream


@dataclass(frozen=True, slots=True)
class Job:
    """One request to answer: its id seeds the sampling, its plan says how.

    `first` is the number of its first sample: where a workflow goes on, those before it have been made.
    """

    request: str
    plan: Plan
    first: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """What a prefill depends on: prompt ids and deltas. Streams and answers with an equal source share it."""

    ids: tuple[int, ...]
    deltas: Deltas


@dataclass(slots=True, eq=False)
class Answer:
    """One answer in the making, and the (job, sample) to which it is given: several where greedy plans are equal."""

    job: Job
    given: list[tuple[Job, int]]
    rows: list[Row] = field(default_factory=list)
    guests: list[GuestRow] = field(default_factory=list)
    fed_guests: int = 0
    generator: torch.Generator = field(init=False, repr=False)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str = ""
    seconds: float = 0.0

    def begin(self, policy: Policy) -> list[Row]:
        """Its rows; they and its random stream, its own in any company, are made when it is about to enter: large."""
        if not self.rows:
            (job, sample), *_ = self.given
            seed = derive(job.plan.sampling.seed, job.request, str(job.first + sample))
            self.generator = torch.Generator().manual_seed(seed)
            self.rows = rows_of(policy, self)
            self.guests = guests_of(policy, self)
        return self.rows

    @property
    def limit(self) -> int:
        return self.job.plan.sampling.max_new_tokens

    @property
    def fed(self) -> int:
        """Of its tokens those that its rows have read: all but the newest."""
        return max(0, len(self.tokens) - 1)

    @property
    def room(self) -> int:
        """Columns of the cache that are kept for what its rows may come to read."""
        return self.limit - self.fed


@dataclass(frozen=True, slots=True)
class Row:
    """One stream of one answer, with its weight in the score."""

    answer: Answer
    source: Source
    weight: float
    head: str | None
    read: bool

    @property
    def reads(self) -> tuple[Answer, tuple[int, ...]]:
        """What it reads: rows of one answer with one prompt read the same tokens."""
        return self.answer, self.source.ids

    @property
    def used(self) -> int:
        """Columns of the cache that it fills so far."""
        return len(self.source.ids) + self.answer.fed


@dataclass(frozen=True, slots=True)
class GuestRow:
    """One stream of one answer that the further model `model` reads, with its weight in the score."""

    answer: Answer
    model: str
    source: Source
    weight: float
    head: str | None


def prompt_ids(policy: Policy, stream: Stream) -> tuple[int, ...]:
    """Token ids of a stream's prompt; those of soft tokens are below zero."""
    return tuple(chain.from_iterable(_ids(policy, segment) for segment in stream.prompt))


def _ids(policy: Policy, segment: Segment) -> Sequence[int]:
    if isinstance(segment, Chat):
        return policy.encode(segment.messages)
    return policy.soft_ids(segment) if isinstance(segment, Soft) else segment.ids


def check_length(policy: Policy, request: str, prompt: int, new: int) -> None:
    """Raise UserError where a prompt leaves no room for its answer."""
    if prompt == 0:
        raise UserError(f"request {request!r} has an empty prompt: give it at least one message")
    if prompt + new > policy.context:
        raise UserError(
            f"request {request!r} has a prompt of {prompt} tokens, and {new} new ones do not fit behind it in the "
            f"context of {policy.context} tokens of {policy.label}: shorten the prompt or sampling.max_new_tokens"
        )


def rows_of(policy: Policy, answer: Answer) -> list[Row]:
    """The rows of an answer, one per stream of its (simplified) plan that the base reads."""
    plan = answer.job.plan
    streams = [(i, stream) for i, stream in enumerate(plan.streams) if stream.model is None]
    prompts = {stream.prompt: prompt_ids(policy, stream) for _, stream in streams}
    rows = []
    for i, stream in streams:
        ids = prompts[stream.prompt]
        check_length(policy, answer.job.request, len(ids), answer.limit)
        rows.append(Row(answer, Source(ids, stream.deltas), stream.weight, stream.head, i == plan.candidates.stream))
    return rows


def guests_of(policy: Policy, answer: Answer) -> list[GuestRow]:
    """The rows of an answer that further models read. Raises UserError where they would have to know more tokens
    than the candidates, or a prompt leaves no room."""
    plan, name = answer.job.plan, answer.job.request
    found = []
    for stream in plan.streams:
        if stream.model is None:
            continue
        if plan.candidates.rule != "top_k" or plan.combine != "log_linear":
            raise UserError(
                f"request {name!r}: model {stream.model} has tokens of its own, and can speak only on the k likeliest "
                "tokens of the base, in a log-linear plan: use generation=pad, pad_scalar or pad_released"
            )
        guest = policy.speaker(stream.model)
        ids = prompt_ids(guest, stream)
        check_length(guest, name, len(ids), answer.limit)
        found.append(GuestRow(answer, stream.model, Source(ids, stream.deltas), stream.weight, stream.head))
    return found


def cells(rows: Sequence[Row]) -> int:
    """Tokens of cache that these rows side by side can come to take: as wide as the widest, and all its room."""
    return len(rows) * (max(row.used for row in rows) + max(row.answer.room for row in rows))


def kind(plan: Plan) -> object:
    """What plans that are decoded side by side agree in: all but streams, seeds, lengths and numbers of answers."""
    sampling = replace(plan.sampling, seed=0, n=1, max_new_tokens=1)
    return replace(plan, streams=(), candidates=replace(plan.candidates, stream=0), sampling=sampling)


def order(rows: Sequence[Row | GuestRow]) -> list[int]:
    """The numbers of base rows first, then adapter by adapter, so that each adapter's rows are one slice."""
    return sorted(range(len(rows)), key=lambda i: _by_adapter(rows[i].source))


def _by_adapter(source: Source) -> tuple[bool, Deltas]:
    return bool(source.deltas), source.deltas


def parts(sources: Sequence[Source], tokens: int) -> list[list[Source]]:
    """Sources of like length together, so that rows x longest stays within `tokens`; adapter by adapter in a part.

    Sources with the same ids stay in one part.
    """
    texts: dict[tuple[int, ...], list[Source]] = {}
    for source in sorted(sources, key=lambda source: len(source.ids)):
        texts.setdefault(source.ids, []).append(source)
    found: list[list[Source]] = []
    for ids, alike in texts.items():
        if found and (len(found[-1]) + len(alike)) * len(ids) <= tokens:
            found[-1] += alike
        else:
            found.append(list(alike))
    return [sorted(part, key=_by_adapter) for part in found]


def padded(sources: Sequence[Source], pad: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids [sources, width] and the number of padding columns of each [sources]."""
    width = max(len(source.ids) for source in sources)
    offsets = torch.tensor([width - len(source.ids) for source in sources])
    ids = torch.full((len(sources), width), pad)
    for i, source in enumerate(sources):
        ids[i, width - len(source.ids) :] = torch.tensor(source.ids)
    return ids, offsets


def prefill_mask(offsets: Tensor, width: int) -> Tensor:
    """True where attention is allowed [rows, 1, width, width]: backwards, not to padding; padding sees itself."""
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    real = torch.arange(width)[None, :] >= offsets[:, None]
    itself = torch.eye(width, dtype=torch.bool)
    return ((causal & real[:, None, :]) | itself)[:, None]


def step_mask(offsets: Tensor, capacity: int, dtype: torch.dtype) -> Tensor | None:
    """Additive mask [rows, 1, 1, capacity] for one new token, made once per batch; None without padding."""
    if not bool((offsets > 0).any()):
        return None
    hidden = torch.arange(capacity)[None, :] < offsets[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf"))
    return mask[:, None, None, :]
