"""A decoder as the formulas say: one row, no cache, float64, the whole vocabulary, everything anew at each token."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from personalign.plans import Chat, Combine, Plan, Soft, Stream, Value
from personalign.policy import lora
from personalign.policy.policy import Policy

Row = npt.NDArray[np.float64]
HALVINGS = 400


def exact(policy: Policy) -> Policy:
    """The same policy in float64."""
    twin = copy.deepcopy(policy)
    for one in (twin, *(guest.policy for guest in twin.guests.values())):
        one.model.double()
        one.heads.double()
    return twin


def log_softmax(scores: Row) -> Row:
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


@contextmanager
def reading(policy: Policy, stream: Stream) -> Iterator[None]:
    """The policy as a stream reads it. Where factors are merged they are, for so long, in the base's own weights:
    W + c (alpha / r) (sum_k s_k B_k) (sum_k s_k A_k), with c = sum_k |c_k| and s_k = c_k / c."""
    size = sum(abs(c) for _, c in stream.deltas)
    if stream.merge == "products" or not size:
        with policy.using(stream.deltas):
            yield
        return
    changed = [layer for _, layer in lora.layers(policy.model) if stream.deltas[0][0] in layer.deltas]
    before = [layer.base.weight.clone() for layer in changed]
    with torch.no_grad(), policy.using(()):
        for layer in changed:
            parts = [(c / size, layer.delta(name)) for name, c in stream.deltas]
            b, a = sum(s * delta.B for s, delta in parts), sum(s * delta.A for s, delta in parts)
            layer.base.weight += size * parts[0][1].scale * (b @ a)
        yield
        for layer, weight in zip(changed, before, strict=True):
            layer.base.weight.copy_(weight)


def states(policy: Policy, stream: Stream, tokens: list[int]) -> torch.Tensor:
    """The last hidden states of one stream's prompt and these tokens [prompt + tokens, width]."""
    ids: list[int] = []
    for part in stream.prompt:
        if isinstance(part, Chat):
            ids += policy.encode(part.messages)
        else:
            ids += policy.soft_ids(part) if isinstance(part, Soft) else part.ids
    with reading(policy, stream), torch.no_grad():
        return policy.hidden(**policy.inputs(torch.tensor([ids + tokens])))[0]


def logprobs(policy: Policy, stream: Stream, tokens: list[int]) -> Row:
    """log p(. | prompt, tokens) of one stream [vocabulary]; a further model has the same tokens under other ids."""
    if stream.model is not None:
        guest = policy.guests[stream.model].policy
        names = policy.tokenizer.convert_ids_to_tokens(range(policy.embedding.num_embeddings))
        own = guest.tokenizer.convert_tokens_to_ids(names)
        return logprobs(guest, replace(stream, model=None), [own[token] for token in tokens])[own]
    assert not isinstance(stream.head, Value)
    hidden = states(policy, stream, tokens)[-1]
    with torch.no_grad():
        hidden = hidden if stream.head is None else policy.heads[stream.head](hidden)
        return log_softmax(policy.model.get_output_embeddings()(hidden).numpy())


def values(policy: Policy, stream: Stream, tokens: list[int], candidates: Sequence[int]) -> Row:
    """What a head makes of the tokens with each candidate behind them [candidates], each in a forward of its own."""
    assert isinstance(stream.head, Value)
    head = policy.heads[stream.head.head]
    user = torch.tensor(stream.head.user, dtype=torch.float64) if stream.head.user else None
    found = []
    for candidate in candidates:
        own = states(policy, stream, [*tokens, candidate])[-len(tokens) - 1 :]
        with torch.no_grad():
            read = own[-1] if head.reader.pooling == "last" else own.mean(0)  # type: ignore[union-attr]
            found.append(float(head.rewards(read, user)))  # type: ignore[operator]
    return np.asarray(found)


def divergent(combine: Combine, reference: Row, others: list[tuple[float, Row]]) -> Row:
    """log of p_0 (f')^-1(sum_j c_j f'(p_j / p_0) - Z): halving finds the Z with which p sums to 1."""
    p0 = np.exp(reference)
    if combine == "forward_kl":  # f'(x) = -1 / x, of which the inverse is -1 / u
        s = sum((-c * np.exp(reference - own) for c, own in others), np.zeros_like(p0))

        def policy(z: float) -> Row:
            return np.asarray(p0 / (z + (s.max() - s)))
    else:  # f'(x) = log(2 x / (1 + x)), of which the inverse is 1 / (2 exp(-u) - 1); Z takes in log 2, a constant
        s = sum((-c * np.log1p(np.exp(reference - own)) for c, own in others), np.zeros_like(p0))

        def policy(z: float) -> Row:
            return np.asarray(p0 / np.expm1(z + (s.max() - s)))

    low, high = -250.0, 1.0  # log z; the larger z, the smaller is p
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if policy(np.exp(middle)).sum() > 1 else (low, middle)
    return np.asarray(np.log(policy(np.exp(low))))


def amulet(context: Row, plain: Row, rounds: int, alpha: float, lambda_: float, eta: float) -> Row:
    """Its game: follow the regularised leader over the whole vocabulary, with each round's policy normalised."""
    start = policy = log_softmax(context)
    utilities = []
    for t in range(1, rounds + 1):
        utilities.append(alpha * (policy - log_softmax(plain)))
        leader = np.mean(utilities, axis=0) + lambda_ * start + policy / (eta * t)
        policy = log_softmax(leader / (lambda_ + 1 / (eta * t)))
    return policy


def summed(plan: Plan, each: list[Row]) -> Row:
    return sum((s.weight * own for s, own in zip(plan.streams, each, strict=True)), np.zeros_like(each[0]))


def step(policy: Policy, plan: Plan, tokens: list[int]) -> Row:
    """The normalised log p of the plan after some tokens [vocabulary]; -inf where a token is no candidate."""
    rule, read = plan.candidates, logprobs(policy, plan.streams[plan.candidates.stream], tokens)
    kept = np.ones(len(read), dtype=bool)
    if rule.rule == "top_k":
        kept = read >= np.sort(read)[-min(rule.k, len(read))]
    elif rule.rule == "plausible":
        kept = np.exp(read) >= rule.fraction * np.exp(read).max()
    each = [spoken(policy, stream, tokens, kept) for stream in plan.streams]
    if len(tokens) % plan.score_every:
        scores = read[kept]
    elif plan.combine == "log_linear":
        scores = summed(plan, each)
        if plan.echo and len(tokens) >= plan.score_every:
            last = [logprobs(policy, stream, tokens[: -plan.score_every]) for stream in plan.streams]
            scores = scores + plan.echo * (summed(plan, last) - last[rule.stream])[kept]
    else:
        others = [(s.weight, log_softmax(own)) for s, own in zip(plan.streams, each, strict=True)]
        scores = divergent(plan.combine, log_softmax(read[kept]), others)
    found = np.full(len(read), -np.inf)
    found[kept] = log_softmax(scores)
    return found


def spoken(policy: Policy, stream: Stream, tokens: list[int], kept: Row) -> Row:
    """What a stream says of the tokens that are kept, in their order."""
    if stream.valued:
        return values(policy, stream, tokens, np.flatnonzero(kept).tolist())
    return logprobs(policy, stream, tokens)[kept]


def decode(policy: Policy, plan: Plan) -> tuple[int, ...]:
    """The greedy answer."""
    tokens: list[int] = []
    while len(tokens) < plan.sampling.max_new_tokens and not (tokens and tokens[-1] in policy.stop_ids):
        tokens.append(int(step(policy, plan, tokens).argmax()))
    return tuple(tokens)
