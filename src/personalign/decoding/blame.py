"""Who is to blame for a score that is not a number: worked out once that has happened, and at no cost before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from personalign.contracts import UserError
from personalign.decoding.rows import Job, prompt_ids
from personalign.plans import Plan, Stream, Value
from personalign.policy.logprobs import Branches
from personalign.policy.lora import parameters
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import prefix_values


def blamed(policy: Policy, job: Job, tokens: Sequence[int], adapters: Sequence[str]) -> UserError:
    """What to tell the user about an answer whose score behind `tokens` is no number.

    `adapters` are those of the whole batch: where they are computed together, the weights of one reach every row.
    """
    where = f"request {job.request!r}: the score of token {len(tokens) + 1} is not a number"
    if broken := [name for name in adapters if not _sound(policy, name)]:
        named = ", ".join(map(repr, broken))
        return UserError(f"{where}: the weights of adapter {named} are not all finite; train it again, at a lower rate")
    if said := [described(stream) for stream in job.plan.streams if not _finite(policy, job.plan, stream, tokens)]:
        return UserError(
            f"{where}: so are {'; '.join(said)}; see whether that model, head or type of number (precision) is sound"
        )
    weights = ", ".join(f"{stream.weight:g}" for stream in job.plan.streams)
    return UserError(f"{where}, though every stream's is: the plan's weights are {weights}; take smaller ones")


def described(stream: Stream) -> str:
    """What a stream gives, in words: what its prompt is made of, and the adapters and head that read it."""
    prompt = " and ".join(type(segment).__name__.lower() for segment in stream.prompt)
    who = " + ".join(f"{weight:g} x {name}" for name, weight in stream.deltas) or "the base"
    who += f" of model {stream.model}" if stream.model else ""
    if isinstance(stream.head, Value):
        return f"the values that head {stream.head.head!r} reads in {who} on a {prompt} prompt"
    head = f" through head {stream.head!r}" if stream.head else ""
    return f"the log-probabilities of the stream of {who} on a {prompt} prompt{head}"


def _sound(policy: Policy, adapter: str) -> bool:
    return all(bool(p.isfinite().all()) for p in parameters(policy.model, adapter))


def _finite(policy: Policy, plan: Plan, stream: Stream, tokens: Sequence[int]) -> bool:
    """Whether a stream's scores behind some tokens are numbers, in forwards of their own."""
    if isinstance(stream.head, Value):
        read = _logits(policy, plan.streams[plan.candidates.stream], tokens)
        candidates = read.topk(min(plan.candidates.k, len(read))).indices.tolist()
        row = Branches(prompt_ids(policy, stream), tuple((*tokens, candidate) for candidate in candidates))
        with policy.using(policy.deltas_of(stream)):
            return all(math.isfinite(values[-1]) for values in prefix_values(policy, [row], stream.head))
    return bool(_logits(policy, stream, tokens).isfinite().all())


def _logits(policy: Policy, stream: Stream, tokens: Sequence[int]) -> Tensor:
    answer = tuple(tokens)
    if stream.model is not None:
        answer = policy.guests[stream.model].covering.own(answer)
        policy = policy.speaker(stream.model)
    ids = torch.tensor([[*prompt_ids(policy, stream), *answer]])
    with policy.using(policy.deltas_of(stream)):
        states = policy.hidden(**policy.inputs(ids), use_cache=False)[0, -1]
    return policy.logits(states if stream.head is None else policy.heads[str(stream.head)](states))
