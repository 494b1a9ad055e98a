"""What a plan thinks of given texts: the score of whole answers, teacher-forced and batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from personalign.decoding.divergence import optimum
from personalign.decoding.rows import check_length, prompt_ids
from personalign.policy.logprobs import Branches, answer_logits
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.types import Deltas, Plan

# Who reads: the deltas, the head and the model of a stream.
_Reader = tuple[Deltas, str | None, str | None]
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
    """sum_j c_j sum_t log p_j(y_t | prompt_j, y_<t) of every reading, in nats; of a plan that is not log-linear,
    sum_t log p(y_t | y_<t) over the whole vocabulary. A further model reads the answer's text as its own tokenizer
    cuts it.

    What several readings share (a prompt and an answer under the same deltas and head) is computed once, and not
    at all where `cache` has it from another run. `description` is for the progress.
    """
    terms = [_terms(policy, reading) if reading.plan.combine == "log_linear" else [] for reading in readings]
    wanted: dict[_Reader, dict[Branches, None]] = {}
    for _, reader, row in (term for some in terms for term in some):
        wanted.setdefault(reader, {})[row] = None
    values: dict[tuple[_Reader, Branches], float] = {}
    for reader, rows in wanted.items():
        deltas, head, model = reader
        sums = sequence_logprobs(policy.speaker(model), list(rows), deltas, cache, description, head)
        values |= {(reader, row): value for row, value in zip(rows, sums[:, 0].tolist(), strict=True)}
    return [
        sum(weight * values[reader, row] for weight, reader, row in some)
        if reading.plan.combine == "log_linear"
        else _divergent(policy, reading)
        for reading, some in zip(readings, terms, strict=True)
    ]


@torch.inference_mode()
def _divergent(policy: Policy, reading: Reading) -> float:
    """sum_t log p(y_t | y_<t) of a plan around its candidates' stream, a stream at a time."""
    if not reading.answer:
        return 0.0
    plan = reading.plan.simplified()
    logits: list[Tensor] = []
    for stream in plan.streams:
        prompt = prompt_ids(policy, stream)
        check_length(policy, reading.name, len(prompt), len(reading.answer))
        with policy.using(stream.deltas):
            logits.append(answer_logits(policy, Branches(prompt, (reading.answer,)), stream.head))
    rows = torch.arange(len(reading.answer), device=policy.device).repeat(len(logits))
    weights = torch.tensor([s.weight for s in plan.streams], device=policy.device).repeat_interleave(len(logits[0]))
    logp = optimum(plan.combine, logits[plan.candidates.stream], torch.cat(logits), rows, weights)
    return float(logp.gather(1, torch.tensor(reading.answer, device=policy.device)[:, None]).sum())


def _terms(policy: Policy, reading: Reading) -> list[_Term]:
    """What is to be read, by whom, and how much it counts; nothing for an empty answer."""
    terms = []
    for stream in reading.plan.simplified().streams:
        if stream.weight and reading.answer:
            reader, answer = policy.speaker(stream.model), reading.answer
            if stream.model is not None:
                answer = policy.guests[stream.model].covering.own(answer)
            prompt = prompt_ids(reader, stream)
            check_length(reader, reading.name, len(prompt), len(answer))
            row = Branches(prompt, (answer,))
            terms.append((stream.weight, (stream.deltas, stream.head, stream.model), row))
    return terms
