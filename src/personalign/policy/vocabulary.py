"""Log-probabilities of single tokens from hidden states, without keeping the logits of a whole vocabulary.

For a target y, d log p(y) / d h = W_y - sum_v p(v) W_v does not depend on the loss that follows. It is
computed beside log p itself, a few rows at a time, so that the backward pass is one product with the gradient
that comes in, and no [tokens, vocabulary] matrix outlives its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOGITS = 2**24  # numbers of the logits that are held at once


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = hidden.new_empty(len(hidden), dtype=wide)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, LOGITS // len(weight))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            scores = torch.log_softmax(F.linear(hidden[rows], weight, bias), dim=-1, dtype=wide)
            chosen = targets[rows, None]
            logp[rows] = scores.gather(1, chosen)[:, 0]
            if slope is not None:
                missing = scores.exp_().neg_().scatter_add_(1, chosen, torch.ones_like(scores[:, :1]))
                slope[rows] = missing.to(hidden.dtype) @ weight
        ctx.slope = slope
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return (gradient[:, None] * ctx.slope).to(ctx.slope.dtype), None, None, None


def target_logprobs(hidden: Tensor, vocabulary: nn.Module, targets: Tensor) -> Tensor:
    """log p(target) of hidden [n, width] and targets [n]: float32 [n] (float64 for float64).

    Gradients flow into `hidden`, and into `vocabulary` where that learns (the plain way is then taken).
    """
    frozen = not any(p.requires_grad for p in vocabulary.parameters())
    if type(vocabulary) is nn.Linear and frozen and not hasattr(vocabulary.weight, "ds_id"):
        apply: Callable[..., Tensor] = _TargetLogprobs.apply
        return apply(hidden, vocabulary.weight, vocabulary.bias, targets)
    scores = vocabulary(hidden)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return -F.cross_entropy(scores.to(wide), targets, reduction="none")
