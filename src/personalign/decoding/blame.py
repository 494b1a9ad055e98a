"""Who is to blame for a score that is not a number: worked out once that has happened, and at no cost before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from personalign.contracts import UserError
from personalign.decoding.rows import Job, prompt_ids
from personalign.policy.lora import parameters
from personalign.policy.policy import Policy
from personalign.types import Stream


def blamed(policy: Policy, job: Job, tokens: Sequence[int], adapters: Sequence[str]) -> UserError:
    """What to tell the user about an answer whose score behind `tokens` is no number.

    `adapters` are those of the whole batch: where they are computed together, the weights of one reach every row.
    """
    where = f"request {job.request!r}: the score of token {len(tokens) + 1} is not a number"
    if broken := [name for name in adapters if not _sound(policy, name)]:
        named = ", ".join(map(repr, broken))
        return UserError(f"{where}: the weights of adapter {named} are not all finite; train it again, at a lower rate")
    if said := [described(stream) for stream in job.plan.streams if not _finite(policy, stream, tokens)]:
        return UserError(
            f"{where}: so are the log-probabilities of {'; '.join(said)}; see whether that model, head or type of "
            "number (precision) is sound"
        )
    weights = ", ".join(f"{stream.weight:g}" for stream in job.plan.streams)
    return UserError(f"{where}, though every stream's is: the plan's weights are {weights}; take smaller ones")


def described(stream: Stream) -> str:
    """A stream in words: what its prompt is made of, and the adapters and head that read it."""
    prompt = " and ".join(type(segment).__name__.lower() for segment in stream.prompt)
    who = " + ".join(f"{weight:g} x {name}" for name, weight in stream.deltas) or "the base"
    who += f" of model {stream.model}" if stream.model else ""
    return f"the stream of {who} on a {prompt} prompt" + (f" through head {stream.head!r}" if stream.head else "")


def _sound(policy: Policy, adapter: str) -> bool:
    return all(bool(p.isfinite().all()) for p in parameters(policy.model, adapter))


def _finite(policy: Policy, stream: Stream, tokens: Sequence[int]) -> bool:
    """Whether a stream's scores behind some tokens are numbers, in a forward of its own."""
    answer = tuple(tokens)
    if stream.model is not None:
        answer = policy.guests[stream.model].covering.own(answer)
        policy = policy.speaker(stream.model)
    ids = torch.tensor([[*prompt_ids(policy, stream), *answer]])
    with policy.using(stream.deltas):
        states = policy.hidden(**policy.inputs(ids), use_cache=False)[:, -1]
    states = states if stream.head is None else policy.heads[stream.head](states)
    return bool(policy.logits(states).isfinite().all())
