"""What a plan thinks of given texts: the log-linear score of whole answers, teacher-forced and batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personalign.decoding.rows import check_length, prompt_ids
from personalign.policy.logprobs import Branches, score_answers
from personalign.policy.policy import Policy
from personalign.types import Deltas, Plan

# One stream's reading of one answer: prompt, answer, deltas.
_Key = tuple[tuple[int, ...], tuple[int, ...], Deltas]


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, as token ids, that a plan is to score; `name` is the request's, for messages."""

    name: str
    plan: Plan
    answer: tuple[int, ...]


def score_readings(
    policy: Policy, readings: Sequence[Reading], on_done: Callable[[int], None] | None = None
) -> list[float]:
    """sum_j c_j sum_t log p_j(y_t | prompt_j, y_<t) of every reading, in nats.

    What several readings share (a prompt and an answer under the same deltas) is computed once. Streams with a
    head are not supported: raises ValueError. `on_done` is told how many tokens were read.
    """
    wanted: dict[Deltas, dict[_Key, None]] = {}
    terms: list[list[tuple[float, _Key]]] = []
    for reading in readings:
        terms.append([])
        for stream in reading.plan.simplified().streams:
            if stream.head is not None:
                raise ValueError("answers are not scored through a head")
            if stream.weight and reading.answer:
                prompt = prompt_ids(policy, stream)
                check_length(policy, reading.name, len(prompt), len(reading.answer))
                key = (prompt, reading.answer, stream.deltas)
                wanted.setdefault(stream.deltas, {})[key] = None
                terms[-1].append((stream.weight, key))
    sums: dict[_Key, float] = {}
    for deltas, keys in wanted.items():
        sums |= _sums(policy, deltas, list(keys), on_done)
    return [sum(weight * sums[key] for weight, key in term) for term in terms]


def _sums(policy: Policy, deltas: Deltas, keys: list[_Key], on_done: Callable[[int], None] | None) -> dict[_Key, float]:
    rows = [Branches(prompt, (answer,)) for prompt, answer, _ in keys]
    with policy.using(deltas):
        scored = score_answers(policy, rows)
    if on_done:
        on_done(sum(row.length for row in rows))
    return {key: float(answers[0].sum()) for key, answers in zip(keys, scored, strict=True)}
