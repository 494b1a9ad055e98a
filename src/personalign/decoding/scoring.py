"""What a plan thinks of given texts: the log-linear score of whole answers, teacher-forced and batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personalign.decoding.rows import check_length, prompt_ids
from personalign.policy.logprobs import Branches
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.types import Deltas, Plan

# Who reads: the deltas and the head of a stream.
_Reader = tuple[Deltas, str | None]
_Term = tuple[float, _Reader, Branches]


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, as token ids, that a plan is to score; `name` is the request's, for messages."""

    name: str
    plan: Plan
    answer: tuple[int, ...]


def score_readings(
    policy: Policy, readings: Sequence[Reading], description: str, cache: Path | None = None
) -> list[float]:
    """sum_j c_j sum_t log p_j(y_t | prompt_j, y_<t) of every reading, in nats.

    What several readings share (a prompt and an answer under the same deltas and head) is computed once, and not
    at all where `cache` has it from another run. `description` is for the progress.
    """
    terms = [_terms(policy, reading) for reading in readings]
    wanted: dict[_Reader, dict[Branches, None]] = {}
    for _, reader, row in (term for some in terms for term in some):
        wanted.setdefault(reader, {})[row] = None
    values: dict[tuple[_Reader, Branches], float] = {}
    for (deltas, head), rows in wanted.items():
        sums = sequence_logprobs(policy, list(rows), deltas, cache, description, head)
        values |= {((deltas, head), row): value for row, value in zip(rows, sums[:, 0].tolist(), strict=True)}
    return [sum(weight * values[reader, row] for weight, reader, row in some) for some in terms]


def _terms(policy: Policy, reading: Reading) -> list[_Term]:
    """What is to be read, by whom, and how much it counts; nothing for an empty answer."""
    terms = []
    for stream in reading.plan.simplified().streams:
        if stream.weight and reading.answer:
            prompt = prompt_ids(policy, stream)
            check_length(policy, reading.name, len(prompt), len(reading.answer))
            terms.append((stream.weight, (stream.deltas, stream.head), Branches(prompt, (reading.answer,))))
    return terms
