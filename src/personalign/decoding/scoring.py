"""What a plan thinks of given texts: the log-linear score of whole answers, teacher-forced and batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personalign.decoding.rows import check_length, prompt_ids
from personalign.policy.logprobs import Branches, score_answers
from personalign.policy.policy import Policy
from personalign.types import Deltas, Plan

# One stream's reading of one answer: prompt, answer, deltas, head.
_Key = tuple[tuple[int, ...], tuple[int, ...], Deltas, str | None]

# Answers behind one prompt that are read in one row.
BRANCHES = 4


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

    What several readings share (a prompt and an answer under the same deltas and head) is computed once.
    `on_done` is told how many tokens were read.
    """
    wanted: dict[tuple[Deltas, str | None], dict[_Key, None]] = {}
    terms: list[list[tuple[float, _Key]]] = []
    for reading in readings:
        terms.append([])
        for stream in reading.plan.simplified().streams:
            if stream.weight and reading.answer:
                prompt = prompt_ids(policy, stream)
                check_length(policy, reading.name, len(prompt), len(reading.answer))
                key = (prompt, reading.answer, stream.deltas, stream.head)
                wanted.setdefault((stream.deltas, stream.head), {})[key] = None
                terms[-1].append((stream.weight, key))
    sums: dict[_Key, float] = {}
    for (deltas, head), keys in wanted.items():
        answers: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for prompt, answer, _, _ in keys:
            answers.setdefault(prompt, []).append(answer)
        rows = [Branches(prompt, tuple(some)) for prompt, all_ in answers.items() for some in batched(all_, BRANCHES)]
        with policy.using(deltas):
            scored = score_answers(policy, rows, head=head)
        for row, logps in zip(rows, scored, strict=True):
            for answer, logp in zip(row.answers, logps, strict=True):
                sums[row.prompt, answer, deltas, head] = float(logp.sum())
        if on_done:
            on_done(sum(row.length for row in rows))
    return [sum(weight * sums[key] for weight, key in term) for term in terms]


def batched(items: list[tuple[int, ...]], size: int) -> list[list[tuple[int, ...]]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
