"""Attention on the CPU: by plain matrix products for a few tokens at once, where they beat the fused kernel several
times, and for one new token by that kernel, told that the query heads of one key head are queries of one head.

Elsewhere (an accelerator, long rows) the fused kernel of transformers is used unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "personalign"
LARGEST = 640**2  # tokens x keys: larger scores cost more memory than they save time


def _few(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether these are a whole short row, or a few tokens behind others under a mask."""
    length, keys = query.shape[2], key.shape[2]
    fits = length == keys if mask is None else mask.shape[-2:] == (length, keys)
    return query.device.type == "cpu" and length > 1 and length * keys <= LARGEST and fits


def _newest(query: Tensor, mask: Tensor | None) -> bool:
    """Whether this is one new token of rows without padding; where there is some, transformers packs the heads."""
    return query.device.type == "cpu" and query.shape[2] == 1 and mask is None


def _plain(module: Any, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether this is softmax(q k) v with no further terms, and causal where there is no mask to say so."""
    extras = any(options.get(name) for name in ("dropout", "softcap")) or not options.get("scaling")
    terms = any(options.get(name) is not None for name in ("position_bias", "s_aux", "is_causal"))
    told = mask is not None or (getattr(module, "is_causal", False) and not options.get("sliding_window"))
    return told and not extras and not terms


def _bias(mask: Tensor | None, query: Tensor) -> Tensor:
    """[rows or 1, 1, time, keys]: zero where attention is allowed; no mask is the causal one."""
    if mask is None:
        mask = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    zero = torch.zeros((), dtype=query.dtype)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(scaling q k^T + mask) v, several query heads to a key head: [rows, heads, time, width] of q,
    [rows, key heads, keys, width] of k and v -> [rows, time, heads, width]. `mask` is boolean or additive; without it
    there are as many keys as queries, and attention is causal."""
    rows, heads, time, width = query.shape
    groups, keys = key.shape[1:3]
    folded = (query * scaling).reshape(rows, groups, -1, width)
    scores = (folded @ key.transpose(-1, -2)).view(rows, groups, -1, time, keys)
    scores = scores.add_(_bias(mask, query)[:, :, None])
    weights = torch.softmax(scores, dim=-1).view(rows, groups, -1, keys)
    return (weights @ value).view(rows, heads, time, width).transpose(1, 2)


def packed(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling q k^T) v of one query, [rows, heads, 1, width], by the fused kernel -> [rows, 1, heads, width].

    The query heads of one key head are handed over as queries of one head: read so, keys are read once.
    """
    rows, heads, _, width = query.shape
    folded = query.reshape(rows, key.shape[1], -1, width)
    return F.scaled_dot_product_attention(folded, key, value, scale=scaling).reshape(rows, 1, heads, width)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The interface of transformers' attention functions."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if _plain(module, attention_mask, options) and _few(query, key, attention_mask):
        return products(query, key, value, attention_mask, options["scaling"]), None
    if _plain(module, attention_mask, options) and _newest(query, attention_mask):
        return packed(query, key, value, options["scaling"]), None
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
