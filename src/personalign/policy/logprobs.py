"""Exact log-probabilities of answers, with logits only where an answer's token is predicted.

A row is one prompt with one or more answers behind it ("branches"). The answers do not see each other and each
starts at the prompt's length, so a row with two answers gives what two rows with one answer give, while the
prompt is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from personalign.policy.policy import Policy
from personalign.policy.steering import residuals
from personalign.policy.vocabulary import target_logprobs

Ids = Sequence[int]
Pooling = Literal["last", "mean"]


@dataclass(frozen=True, slots=True)
class Branches:
    """One prompt and its answers, as token ids; those of a prompt's soft tokens are below zero."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the model reads [rows, time]; positions [rows, time]; mask [rows, 1, time, time] or None when plain causal
    attention is exact; `reads` are flat indices of the hidden states that predict `targets`; `sizes` the answers'
    lengths."""

    inputs: dict[str, Tensor]
    positions: Tensor
    mask: Tensor | None
    reads: Tensor
    targets: Tensor
    sizes: list[int]


def _row(row: Branches) -> tuple[list[int], list[int], list[int], list[int]]:
    """ids, positions, branch number of each token (0 is the prompt), and where each answer token is read."""
    ids, positions, branch = list(row.prompt), list(range(len(row.prompt))), [0] * len(row.prompt)
    reads: list[int] = []
    for number, answer in enumerate(row.answers, start=1):
        reads += [len(row.prompt) - 1, *range(len(ids), len(ids) + len(answer) - 1)][: len(answer)]
        ids += answer
        positions += range(len(row.prompt), len(row.prompt) + len(answer))
        branch += [number] * len(answer)
    return ids, positions, branch, reads


def _layout(policy: Policy, rows: Sequence[Branches]) -> _Layout:
    width = max(row.length for row in rows)
    ids = torch.full((len(rows), width), policy.pad_id)
    # Padding counts on: where positions fall back, transformers sees several texts in a row and makes a mask of them.
    positions = torch.arange(width).repeat(len(rows), 1)
    branch = torch.full((len(rows), width), -1)
    reads: list[int] = []
    for i, row in enumerate(rows):
        row_ids, row_positions, row_branch, row_reads = _row(row)
        ids[i, : row.length] = torch.tensor(row_ids)
        positions[i, : row.length] = torch.tensor(row_positions)
        branch[i, : row.length] = torch.tensor(row_branch)
        reads += [i * width + r for r in row_reads]
    targets = [t for row in rows for answer in row.answers for t in answer]
    mask = _mask(branch) if any(len(row.answers) > 1 for row in rows) else None
    device = policy.device
    return _Layout(
        policy.inputs(ids),
        positions.to(device),
        mask.to(device) if mask is not None else None,
        torch.tensor(reads, device=device),
        torch.tensor(targets, device=device),
        [len(answer) for row in rows for answer in row.answers],
    )


def _mask(branch: Tensor) -> Tensor:
    """True where attention is allowed: backwards, to the prompt or to the own branch; padding sees itself."""
    causal = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool).tril()
    query, key = branch[:, :, None], branch[:, None, :]
    allowed = causal & ((key == 0) | (key == query))
    return allowed[:, None]


def answer_logprobs(policy: Policy, rows: Sequence[Branches], head: str | None = None) -> list[Tensor]:
    """Per answer (rows in order, answers in order within a row), log p of each of its tokens: float32 [length].

    Right-padded rows under plain causal attention need no mask: no real token comes after a padding one.
    Gradients flow into the adapters that the present routing uses, into the heads that make soft tokens, and into
    `head`, the policy's map of the last hidden state, if one is named.
    """
    layout = _layout(policy, rows)
    logp = target_logprobs(_read(policy, layout, head), policy.model.get_output_embeddings(), layout.targets)
    return list(logp.split_with_sizes(layout.sizes))


def answer_logits(policy: Policy, row: Branches, head: str | None = None) -> Tensor:
    """The logits that predict each token of a row's answers, as `answer_logprobs` reads them: float32 [tokens,
    vocabulary]."""
    return policy.logits(_read(policy, _layout(policy, [row]), head))


def answer_states(policy: Policy, rows: Sequence[Branches], pooling: Pooling, layer: int | None = None) -> Tensor:
    """Per answer, in the order of `answer_logprobs`, the hidden state at its last token or the mean over its tokens:
    float32 [answers, width], the last one or with `layer` that behind a layer, from 0. No answer may be empty."""
    states = token_states(policy, rows, layer)
    return torch.stack([own[-1] if pooling == "last" else own.mean(0) for own in states])


def token_states(policy: Policy, rows: Sequence[Branches], layer: int | None = None) -> list[Tensor]:
    """Per answer the hidden states of its tokens, the last ones or those behind a layer: float32 [length, width]."""
    if layer is None:
        hidden = _hidden(policy, _layout(policy, rows))
    else:
        with residuals(policy.model, layer) as seen:
            _hidden(policy, _layout(policy, rows))
        (hidden,) = seen
    found = []
    for states, row in zip(hidden, rows, strict=True):
        sizes = [len(row.prompt), *map(len, row.answers), len(states) - row.length]
        found += [own.float() for own in states.split_with_sizes(sizes)[1:-1]]
    return found


def _read(policy: Policy, layout: _Layout, head: str | None) -> Tensor:
    """What predicts each answer token [tokens, width], through a head if one is named."""
    hidden = _hidden(policy, layout)
    read = hidden.reshape(-1, hidden.shape[-1])[layout.reads]
    return read if head is None else policy.heads[head](read)


def _hidden(policy: Policy, layout: _Layout) -> Tensor:
    """Last hidden states [rows, time, width] under the present routing."""
    return policy.hidden(**layout.inputs, attention_mask=layout.mask, position_ids=layout.positions, use_cache=False)


def batches(rows: Sequence[Branches], max_tokens: int) -> list[list[int]]:
    """Row indices in batches of similar length, so that rows x longest stays within `max_tokens`."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    result: list[list[int]] = []
    for i in order:
        if result and (len(result[-1]) + 1) * rows[i].length <= max_tokens:
            result[-1].append(i)
        else:
            result.append([i])
    return result
