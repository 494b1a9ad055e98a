"""Beginnings that prompts have in common: where prompts are cut, and what is kept of what was read.

The prompts of one user begin with the same profile or history. Such a beginning is fed once, by itself; what follows
it in each prompt is fed as rows that read its keys and values.

Answers must not depend on what happens to be kept: a prompt that is fed in two parts is rounded otherwise than one
that is fed whole. So
- where prompts are cut is settled from the whole list of jobs (`cut`, by `Decoder.groups`), and travels with each job:
  a resumed run, which answers a part of that list, cuts as the first one did, on any number of processes;
- a beginning is a forward of its own, of nothing but its tokens, under all deltas that a part of a prefill reads it
  with: its key says all of this (and which weights read it), so what is kept has the bits of what would be made again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from personalign.decoding.cache import RowCache
from personalign.decoding.rows import Job, prompt_ids
from personalign.plans import Deltas
from personalign.policy.policy import Policy
from personalign.policy.versions import Versions

LEAST = 128
"""Tokens of a beginning that are worth a forward of their own, which takes as long as feeding some dozens."""
TOKEN = np.dtype(np.int32)


def cut(policy: Policy, jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each with the length of the beginning that every stream's prompt shares with others; 0 for none.

    Prompts share one where the same deltas read them. Each has one beginning at most, and they are chosen so that the
    fewest tokens are fed in all.
    """
    asked: list[list[bytes]] = []
    readers: dict[bytes, set[Deltas]] = {}
    for job in jobs:
        ours = [stream for stream in job.plan.streams if stream.model is None]
        ids = {stream.prompt: _packed(prompt_ids(policy, stream)) for stream in ours}
        asked.append([b"" if stream.model else ids[stream.prompt] for stream in job.plan.streams])
        for stream in ours:
            text = ids[stream.prompt]
            readers.setdefault(text, set()).add(policy.deltas_of(stream))
    alike: dict[frozenset[Deltas], list[bytes]] = {}
    for text, deltas in readers.items():
        alike.setdefault(frozenset(deltas), []).append(text)
    found = {text: length for texts in alike.values() for text, length in _lengths(texts).items()}
    return [
        replace(job, cuts=tuple(found.get(text, 0) for text in texts)) for job, texts in zip(jobs, asked, strict=True)
    ]


def _packed(ids: Sequence[int]) -> bytes:
    """Small, and sorted by beginnings."""
    return np.asarray(ids, dtype=TOKEN).tobytes()


def _common(one: bytes, two: bytes) -> int:
    """How many first tokens are equal; the last one, whose hidden state is wanted, is never part of a beginning."""
    width = min(len(one), len(two)) // TOKEN.itemsize - 1
    differ = np.flatnonzero(np.frombuffer(one, TOKEN, width) != np.frombuffer(two, TOKEN, width))
    return int(differ[0]) if len(differ) else width


@dataclass(slots=True)
class _Node:
    """Texts from number `first` on that have `length` first tokens in common; what beginnings further on save."""

    length: int
    first: int
    saved: int = 0


def _lengths(texts: Sequence[bytes]) -> dict[bytes, int]:
    """Of each of these distinct texts the beginning for which the fewest tokens are fed in all.

    Sorted, the texts below one node of their prefix tree stand together. A node of n texts saves (n - 1) x length, or
    what the nodes below it save, which are done before it.
    """
    texts = sorted(text for text in texts if len(text) > LEAST * TOKEN.itemsize)
    found = [0] * len(texts)
    nodes = [_Node(0, 0)]
    for i, text in enumerate(texts):
        common = _common(text, texts[i + 1]) if i + 1 < len(texts) else 0
        below = _Node(common, i)
        while nodes[-1].length > common:
            node = nodes.pop()
            node.saved += below.saved
            whole = (i - node.first) * node.length if node.length >= LEAST else 0
            if whole > node.saved:
                found[node.first : i + 1] = [node.length] * (i + 1 - node.first)
            below = _Node(common, node.first, max(whole, node.saved))
        if nodes[-1].length < common:
            nodes.append(below)
        else:
            nodes[-1].saved += below.saved
    return dict(zip(texts, found, strict=True))


@dataclass(frozen=True, slots=True)
class Beginning:
    """First tokens of prompts, the deltas under which they are read side by side, and the depth of their trunk."""

    ids: tuple[int, ...]
    deltas: tuple[Deltas, ...]
    depth: int


class Prefixes:
    """What was read of beginnings: caches of a row for each of the deltas, and one for the trunk.

    The last used ones are kept, of `tokens` (rows x columns) in all; one that was read with other weights than the
    policy's present ones is not used again.
    """

    def __init__(self, policy: Policy, tokens: int) -> None:
        self.tokens = tokens
        self._versions = Versions(policy)
        self._kept: OrderedDict[Beginning, tuple[object, RowCache]] = OrderedDict()

    def read(self, beginning: Beginning, read: Callable[[], RowCache]) -> tuple[RowCache, bool]:
        """The cache of a beginning, which is `read` where it is not kept, and whether it was."""
        version = self._versions.now({name for deltas in beginning.deltas for name, _ in deltas})
        before = self._kept.pop(beginning, None)
        kept = before is not None and before[0] == version
        cache = before[1] if before is not None and kept else read()
        self._kept[beginning] = version, cache
        self._bound()
        return cache, not kept

    def _bound(self) -> None:
        total = sum(cache.cells for _, cache in self._kept.values())
        while total > self.tokens:
            _, (_, oldest) = self._kept.popitem(last=False)
            total -= oldest.cells
