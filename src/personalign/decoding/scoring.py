"""What a plan thinks of given texts: the score of whole answers, teacher-forced and batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from personalign.decoding.divergence import optimum
from personalign.decoding.rows import check_length, prompt_ids
from personalign.plans import Deltas, Plan, Value
from personalign.policy.logprobs import Branches, answer_logits
from personalign.policy.policy import Policy
from personalign.policy.reference import sequence_logprobs
from personalign.policy.reward_heads import check_rates, sequence_values

# Who reads: the deltas, the head or the value, and the model of a stream.
_Reader = tuple[Deltas, str | Value | None, str | None]
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
    """sum_j c_j sum_t log p_j(y_t | prompt_j, y_<t) of every reading, in nats, with the values of all y_<=t of streams
    that are `valued`; of a plan that is not log-linear, or has an echo, sum_t log p(y_t | y_<t) over the whole
    vocabulary. A further model reads the answer's text as its own tokenizer cuts it.

    What several readings share (a prompt and an answer under the same deltas and head) is computed once, and not
    at all where `cache` has it from another run. `description` is for the progress.
    """
    terms = [_terms(policy, reading) if _is_a_sum(reading.plan) else [] for reading in readings]
    wanted: dict[_Reader, dict[Branches, None]] = {}
    for _, reader, row in (term for some in terms for term in some):
        wanted.setdefault(reader, {})[row] = None
    values: dict[tuple[_Reader, Branches], float] = {}
    for reader, rows in wanted.items():
        deltas, head, model = reader
        if isinstance(head, Value):
            sums = sequence_values(policy, list(rows), deltas, head, description)
        else:
            sums = sequence_logprobs(policy.speaker(model), list(rows), deltas, cache, description, head)
        values |= {(reader, row): value for row, value in zip(rows, sums[:, 0].tolist(), strict=True)}
    return [
        sum(weight * values[reader, row] for weight, reader, row in some)
        if _is_a_sum(reading.plan)
        else _by_token(policy, reading)
        for reading, some in zip(readings, terms, strict=True)
    ]


def _is_a_sum(plan: Plan) -> bool:
    """Whether the score of an answer is the weighted sum of its streams'."""
    return plan.combine == "log_linear" and plan.echo == 0.0


@torch.inference_mode()
def _by_token(policy: Policy, reading: Reading) -> float:
    """sum_t log p(y_t | y_<t) of a plan, from the logits of a stream at a time."""
    if not reading.answer:
        return 0.0
    plan = reading.plan.simplified()
    logits: list[Tensor] = []
    for stream in plan.streams:
        assert not isinstance(stream.head, Value), "no plan adds values under an f-divergence"
        prompt = prompt_ids(policy, stream)
        check_length(policy, reading.name, len(prompt), len(reading.answer))
        with policy.using(policy.deltas_of(stream)):
            logits.append(answer_logits(policy, Branches(prompt, (reading.answer,)), stream.head))
    logp = _echoed(plan, logits) if plan.combine == "log_linear" else _divergent(plan, logits)
    return float(logp.gather(1, torch.tensor(reading.answer, device=policy.device)[:, None]).sum())


def _echoed(plan: Plan, logits: Sequence[Tensor]) -> Tensor:
    """log p [tokens, vocabulary] of a plan whose every step is moved as the one before was, too."""
    scores = sum((s.weight * own for s, own in zip(plan.streams, logits, strict=True)), torch.zeros_like(logits[0]))
    moved = scores - logits[plan.candidates.stream]
    scores[1:] += plan.echo * moved[:-1]
    return scores.log_softmax(-1)


def _divergent(plan: Plan, logits: Sequence[Tensor]) -> Tensor:
    """log p [tokens, vocabulary] of a plan around its candidates' stream."""
    read = logits[plan.candidates.stream]
    rows = torch.arange(len(read), device=read.device).repeat(len(logits))
    weights = torch.tensor([s.weight for s in plan.streams], device=read.device).repeat_interleave(len(read))
    return optimum(plan.combine, read, torch.cat(list(logits)), rows, weights)


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
            if isinstance(stream.head, Value):
                check_rates(reader, stream.head)
            row = Branches(prompt, (answer,))
            terms.append((stream.weight, (reader.deltas_of(stream), stream.head, stream.model), row))
    return terms
