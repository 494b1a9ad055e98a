"""The rows of a batch: which streams there are, what is prefilled once, how padding is masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from personalign.contracts import UserError
from personalign.plans import Chat, Deltas, Plan, Segment, Soft, Stream, Value
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import check_rates
from personalign.runtime.seeds import derive


@dataclass(frozen=True, slots=True)
class Job:
    """One request to answer: its id seeds the sampling, its plan says how.

    `first` is the number of its first sample: where a workflow goes on, those before it have been made. `cuts` are, for
    each stream, the length of the beginning that its prompt shares with others' (see `prefixes`).
    """

    request: str
    plan: Plan
    first: int = 0
    cuts: tuple[int, ...] = ()


# Prompt ids, and the length of the beginning that is read by itself.
Text = tuple[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Source:
    """What a prefill depends on: prompt ids and deltas. Streams and answers with an equal source share it.

    The first `cut` ids are a beginning that is read by itself.
    """

    ids: tuple[int, ...]
    deltas: Deltas
    cut: int = 0

    @property
    def text(self) -> Text:
        return self.ids, self.cut

    @property
    def fed(self) -> int:
        """The tokens behind its beginning."""
        return len(self.ids) - self.cut


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
    moved: Tensor | None = field(default=None, repr=False)  # by how much its newest score was, for a plan with an echo
    ahead: bool = False  # whether its rows have read its newest token too, as one of the candidates
    dropped: int = 0  # candidates that they have read and that were not chosen
    reused: int = 0  # tokens of its rows' prompts that were not fed for it

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
        """Of its tokens those that its rows have read: all but the newest, or all."""
        return max(0, len(self.tokens) - (not self.ahead))

    @property
    def room(self) -> int:
        """Columns of the cache that are kept for what its rows may come to read."""
        plan = self.job.plan
        return self.limit - self.fed + (plan.candidates.k if plan.valued else 0)


@dataclass(frozen=True, slots=True)
class Row:
    """One stream of one answer, with its weight in the score, and all that read values of the same source.

    Where nothing but values is read of a source, its row has weight 0, and is not `read`.
    """

    answer: Answer
    source: Source
    weight: float
    head: str | None
    read: bool
    values: tuple[tuple[float, Value], ...] = ()

    @property
    def reads(self) -> tuple[Answer, Text]:
        """What it reads: rows of one answer with one prompt read the same tokens."""
        return self.answer, self.source.text

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
    """The rows of an answer, one per stream of its (simplified) plan that the base reads; values are read in a row that
    is there anyway."""
    plan = answer.job.plan
    prompts = {stream.prompt: prompt_ids(policy, stream) for stream in plan.streams if stream.model is None}
    rows: list[Row] = []
    values: dict[Source, list[tuple[float, Value]]] = {}
    cuts = answer.job.cuts or (0,) * len(plan.streams)
    for i, (stream, cut) in enumerate(zip(plan.streams, cuts, strict=True)):
        if stream.model is not None:
            continue
        source = Source(prompts[stream.prompt], policy.deltas_of(stream), cut)
        check_length(policy, answer.job.request, len(source.ids), answer.limit)
        if isinstance(stream.head, Value):
            check_rates(policy, stream.head)
            values.setdefault(source, []).append((stream.weight, stream.head))
        else:
            rows.append(Row(answer, source, stream.weight, stream.head, i == plan.candidates.stream))
    rows = [replace(row, values=tuple(values.pop(row.source, ()))) for row in rows]
    return rows + [Row(answer, source, 0.0, None, False, tuple(some)) for source, some in values.items()]


def columns(rows: Sequence[Row]) -> int:
    """Columns of cache that these rows side by side can come to need, where all end at the same one: as many as the
    longest by itself, since what it filled is free again as soon as it has ended."""
    return max(row.used + row.answer.room for row in rows)


def guests_of(policy: Policy, answer: Answer) -> list[GuestRow]:
    """The rows of an answer that further models read. Raises UserError where they would have to know more tokens
    than the candidates, or a prompt leaves no room."""
    plan, name = answer.job.plan, answer.job.request
    found = []
    for stream in plan.streams:
        if stream.model is None:
            continue
        if plan.candidates.rule != "top_k" or plan.combine != "log_linear" or plan.echo:
            raise UserError(
                f"request {name!r}: model {stream.model} has tokens of its own, and can speak only on the k likeliest "
                "tokens of the base, in a log-linear plan: use generation=pad, or another with a top_k"
            )
        guest = policy.speaker(stream.model)
        ids = prompt_ids(guest, stream)
        check_length(guest, name, len(ids), answer.limit)
        assert not isinstance(stream.head, Value), "values are read by the base"
        source = Source(ids, guest.deltas_of(stream))
        found.append(GuestRow(answer, stream.model, source, stream.weight, stream.head))
    return found


def cells(rows: Sequence[Row]) -> int:
    """Tokens of cache that these rows side by side can come to take."""
    return len(rows) * columns(rows)


def kind(plan: Plan) -> object:
    """What plans that are decoded side by side agree in: all but streams, seeds, lengths and numbers of answers; and
    either all of them read values or none."""
    sampling = replace(plan.sampling, seed=0, n=1, max_new_tokens=1)
    return plan.valued, replace(plan, streams=(), candidates=replace(plan.candidates, stream=0), sampling=sampling)


def order(rows: Sequence[Row | GuestRow]) -> list[int]:
    """The numbers of base rows first, then adapter by adapter, so that each adapter's rows are one slice."""
    return sorted(range(len(rows)), key=lambda i: _by_adapter(rows[i].source))


def _by_adapter(source: Source) -> tuple[bool, Deltas]:
    return bool(source.deltas), source.deltas


def parts(sources: Sequence[Source], tokens: int) -> list[list[Source]]:
    """Sources of which like numbers of tokens are fed together, so that rows x most stays within `tokens`; adapter by
    adapter in a part.

    Sources of one text stay in one part, those with a beginning read by itself and those without in parts of their own.
    """
    texts: dict[Text, list[Source]] = {}
    for source in sorted(sources, key=lambda source: (source.cut > 0, source.fed)):
        texts.setdefault(source.text, []).append(source)
    found: list[list[Source]] = []
    for (_, cut), alike in texts.items():
        fits = found and (len(found[-1]) + len(alike)) * alike[0].fed <= tokens
        if fits and (found[-1][0].cut > 0) == (cut > 0):
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


def prefill_mask(offsets: Tensor, width: int, fed: int) -> Tensor:
    """True where attention of the last `fed` columns is allowed [rows, 1, fed, width]: backwards, not to padding;
    padding sees itself."""
    key, query = torch.arange(width), torch.arange(width - fed, width)[:, None]
    real = key >= offsets[:, None]
    return (((key <= query) & real[:, None, :]) | (key == query))[:, None]


def step_mask(offsets: Tensor, capacity: int, dtype: torch.dtype) -> Tensor | None:
    """Additive mask [rows, 1, 1, capacity] for one new token, made once per batch; None without padding."""
    if not bool((offsets > 0).any()):
        return None
    hidden = torch.arange(capacity)[None, :] < offsets[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf"))
    return mask[:, None, None, :]


def leaf_mask(step: Tensor | None, length: int, leaves: int, like: Tensor) -> Tensor:
    """Additive mask [rows or 1, 1, leaves, length + leaves], of the type and place of `like`: of some candidates each
    sees itself and the first `length` columns, as far as `step`, the mask of one new token, lets it."""
    before = like.new_zeros(1, 1, 1, length) if step is None else step[..., :length]
    others = like.new_full((leaves, leaves), float("-inf")).fill_diagonal_(0.0)
    rows = len(before)
    return torch.cat([before.expand(rows, 1, leaves, length), others.expand(rows, 1, leaves, leaves)], dim=-1)
