"""Prompts, read before the first token: each distinct one once, those of like length together, and the beginnings that
they share (see `prefixes`) by themselves before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from personalign.decoding import rows as layout
from personalign.decoding.cache import RowCache
from personalign.decoding.prefixes import Beginning, Prefixes
from personalign.decoding.rows import Row, Source, Text
from personalign.policy.policy import Policy
from personalign.policy.trunk import Trunk

PREFILL_TOKENS = 2048
"""Padded tokens in one prefill forward: bounds its memory, and few enough that prompts of like length are together."""


def prefill(
    policy: Policy, rows: Sequence[Row], trunk: Trunk, room: int, prefixes: Prefixes
) -> tuple[RowCache, Tensor]:
    """Feed every distinct source once, then spread cache and last hidden states over the rows.

    Returns the cache, whose rows all end at its last filled column, with `room` for further ones, and the states
    [rows, width]. Notes for each answer what was not fed for it.
    """
    parts = layout.parts(list(dict.fromkeys(row.source for row in rows)), PREFILL_TOKENS)
    sources = {source: i for i, source in enumerate(source for part in parts for source in part)}
    texts = {text: i for i, text in enumerate(dict.fromkeys(source.text for source in sources))}
    reading = _Reading(policy, trunk, prefixes, sources, texts, room)
    states = torch.cat([reading.part(part) for part in parts])
    for row in rows:
        row.answer.reused += len(row.source.ids) - reading.fed.pop(row.source, 0)
    spread = torch.tensor([sources[row.source] for row in rows], device=policy.device)
    read = dict.fromkeys(row.reads for row in rows)
    trunk_rows = torch.tensor([texts[text] for _, text in read], device=policy.device)
    reading.cache.select(spread, trunk_rows, 0, room)
    return reading.cache, states[spread]


class _Reading:
    """The cache of a prefill, which has a row for each source and, in its trunk, for each text."""

    def __init__(
        self,
        policy: Policy,
        trunk: Trunk,
        prefixes: Prefixes,
        sources: dict[Source, int],
        texts: dict[Text, int],
        room: int,
    ) -> None:
        self.policy, self.trunk, self.prefixes, self.sources, self.texts = policy, trunk, prefixes, sources, texts
        self.width = max(len(source.ids) for source in sources)
        self.cache = self._cache(len(sources), self.width + room, len(texts))
        self.fed: dict[Source, int] = {}  # tokens, beginnings that had to be read included
        self.read: dict[Beginning, RowCache] = {}

    def _cache(self, rows: int, columns: int, texts: int) -> RowCache:
        layers = self.policy.model.config.get_text_config().num_hidden_layers
        return RowCache(layers, rows, columns, self.trunk.depth, texts)

    def part(self, part: list[Source]) -> Tensor:
        """Read some sources; last hidden states [sources, width]."""
        texts: dict[Text, list[Source]] = {}
        for source in part:
            texts.setdefault(source.text, []).append(source)
        longest, fed = max(len(source.ids) for source in part), max(source.fed for source in part)
        self.fed |= {source: min(fed, len(source.ids)) for source in part}
        for alike in texts.values():
            self._begin(alike, fed)
        rows, trunk_rows = self._places(part, list(texts))
        self.cache.window(rows, trunk_rows, self.width - longest, self.width - fed)
        return _read(self.policy, part, self.cache, self.trunk, fed)

    def _places(self, part: list[Source], texts: list[Text]) -> tuple[slice, slice]:
        """The rows of the sources and of their texts, which are numbered as they come in the parts."""
        row, text = self.sources[part[0]], self.texts[texts[0]]
        return slice(row, row + len(part)), slice(text, text + len(texts))

    def _begin(self, alike: list[Source], fed: int) -> None:
        """Put what was read of the beginning of a text's sources into their rows, up to where they are `fed`; what is
        in front of it is zero."""
        if alike[0].cut == 0:
            return
        beginning = Beginning(alike[0].ids[: alike[0].cut], tuple(s.deltas for s in alike), self.trunk.depth)
        if beginning not in self.read:
            self.read[beginning], new = self.prefixes.read(beginning, lambda: self._beginning(beginning))
            for source in alike if new else []:
                self.fed[source] += len(beginning.ids)
        rows = torch.tensor([self.sources[source] for source in alike], device=self.policy.device)
        text = torch.tensor([self.texts[alike[0].text]], device=self.policy.device)
        length = max(fed, len(alike[0].ids))
        self.cache.put(rows, text, self.width - length, self.read[beginning], length - fed)

    def _beginning(self, beginning: Beginning) -> RowCache:
        """Read a beginning by itself, under all its deltas."""
        columns = len(beginning.ids)
        cache = self._cache(len(beginning.deltas), columns, 1)
        _read(self.policy, [Source(beginning.ids, deltas) for deltas in beginning.deltas], cache, self.trunk, columns)
        return cache


def _read(policy: Policy, sources: list[Source], cache: RowCache, trunk: Trunk, fed: int) -> Tensor:
    """Feed the last `fed` tokens of the sources to the window of the cache; last hidden states [sources, width].

    Where a source has fewer behind its beginning than others, what it reads again is its beginning's end.
    """
    ids, offsets = layout.padded(sources, policy.pad_id)
    longest, device = ids.shape[1], policy.device
    policy.routing.by_row([source.deltas for source in sources])
    trunk.arrange([source.text for source in sources], device)
    masked = fed < longest or bool((offsets > 0).any())
    positions = (torch.arange(longest)[None] - offsets[:, None]).clamp(min=0)
    with trunk.grown(policy):
        states = policy.hidden(
            **policy.inputs(ids[:, -fed:]),
            attention_mask=layout.prefill_mask(offsets, longest, fed).to(device) if masked else None,
            position_ids=positions[:, -fed:].to(device),
            past_key_values=cache,
            use_cache=True,
        )
    return states[:, -1]
