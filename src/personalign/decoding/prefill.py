"""Prompts, read before the first token: each distinct one once, those of like length together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from personalign.decoding import rows as layout
from personalign.decoding.cache import RowCache
from personalign.decoding.rows import Row, Source
from personalign.policy.policy import Policy
from personalign.policy.trunk import Trunk

PREFILL_TOKENS = 2048
"""Padded tokens in one prefill forward: bounds its memory, and few enough that prompts of like length are together."""


def prefill(policy: Policy, rows: Sequence[Row], trunk: Trunk, room: int) -> tuple[RowCache, Tensor]:
    """Feed every distinct source once, then spread cache and last hidden states over the rows.

    Returns the cache, whose rows all end at its last filled column, with `room` for further ones, and the states
    [rows, width].
    """
    parts = layout.parts(list(dict.fromkeys(row.source for row in rows)), PREFILL_TOKENS)
    sources = {source: i for i, source in enumerate(source for part in parts for source in part)}
    texts = {ids: i for i, ids in enumerate(dict.fromkeys(source.ids for source in sources))}
    width = max(map(len, texts))
    layers = policy.model.config.get_text_config().num_hidden_layers
    cache = RowCache(layers, len(sources), width + room, trunk.depth, len(texts))
    states = []
    for part in parts:
        row, text = sources[part[0]], texts[part[0].ids]
        windows = slice(row, row + len(part)), slice(text, text + len({source.ids for source in part}))
        cache.window(*windows, width - max(len(source.ids) for source in part))
        states.append(_read(policy, part, cache, trunk))
    spread = torch.tensor([sources[row.source] for row in rows], device=policy.device)
    trunk_rows = torch.tensor([texts[ids] for _, ids in dict.fromkeys(row.reads for row in rows)], device=policy.device)
    cache.select(spread, trunk_rows, 0, room)
    return cache, torch.cat(states)[spread]


def _read(policy: Policy, sources: list[Source], cache: RowCache, trunk: Trunk) -> Tensor:
    """Fill the window of the cache; last hidden states [sources, width]."""
    ids, offsets = layout.padded(sources, policy.pad_id)
    longest, device = ids.shape[1], policy.device
    policy.routing.by_row([source.deltas for source in sources])
    trunk.arrange([source.ids for source in sources], device)
    padded = bool((offsets > 0).any())
    with trunk.grown(policy):
        states = policy.hidden(
            **policy.inputs(ids),
            attention_mask=layout.prefill_mask(offsets, longest).to(device) if padded else None,
            position_ids=(torch.arange(longest)[None] - offsets[:, None]).clamp(min=0).to(device),
            past_key_values=cache,
            use_cache=True,
        )
    return states[:, -1]
