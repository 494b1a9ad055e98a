"""Attention by plain matrix products, for short rows on the CPU, where it beats the fused kernel several times.

Elsewhere (an accelerator, a cache, long rows) the fused kernel of transformers is used unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "personalign"
LONGEST = 640  # tokens: the scores of longer rows cost more memory than they save time


def _small(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    length = query.shape[2]
    square = length == key.shape[2] and 1 < length <= LONGEST
    return query.device.type == "cpu" and square and (mask is None or mask.shape[-2:] == (length, length))


def _plain(module: Any, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether this is softmax(q k) v with no further terms, and causal where there is no mask to say so."""
    extras = any(options.get(name) for name in ("dropout", "softcap")) or not options.get("scaling")
    terms = any(options.get(name) is not None for name in ("position_bias", "s_aux", "is_causal"))
    told = mask is not None or (getattr(module, "is_causal", False) and not options.get("sliding_window"))
    return told and not extras and not terms


def _bias(mask: Tensor | None, query: Tensor) -> Tensor:
    """[rows or 1, 1, time, time]: zero where attention is allowed; no mask is the causal one."""
    if mask is None:
        mask = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    zero = torch.zeros((), dtype=query.dtype)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(scaling q k^T + mask) v, several query heads to a key head: [rows, heads, time, width] of q,
    [rows, key heads, time, width] of k and v -> [rows, time, heads, width]. `mask` is boolean or additive."""
    rows, heads, time, width = query.shape
    groups = key.shape[1]
    folded = (query * scaling).reshape(rows, groups, -1, width)
    scores = (folded @ key.transpose(-1, -2)).view(rows, groups, -1, time, time)
    scores = scores.add_(_bias(mask, query)[:, :, None])
    weights = torch.softmax(scores, dim=-1).view(rows, groups, -1, time)
    return (weights @ value).view(rows, heads, time, width).transpose(1, 2)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The interface of transformers' attention functions."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if _plain(module, attention_mask, options) and _small(query, key, attention_mask):
        return products(query, key, value, attention_mask, options["scaling"]), None
    states, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return states, None


def install(model: Any) -> None:
    """Let `model` attend through `attend` where it uses the fused kernel; other choices are left alone."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
