"""Soft tokens: vectors that stand in a prompt where the embeddings of tokens do.

A prompt stays a row of numbers. Each soft token has one below zero, so that lengths, padding and the sharing of equal
prompts need to know nothing of it; the look-up of embeddings alone does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from personalign.plans import Args, Soft


class SoftHead(nn.Module, ABC):
    """A head that makes `tokens` vectors, as wide as the model's embeddings, of the arguments of a segment."""

    tokens: int

    @abstractmethod
    def forward(self, asked: Sequence[Args]) -> Tensor:
        """The arguments of some segments -> [segments, tokens, width]."""


class SoftTokens:
    """The numbers of one policy's soft tokens, given out as they are first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Soft, int], tuple[int, ...]] = {}
        self._segments: list[Soft] = []
        self._named: list[tuple[int, int]] = []  # token -1 - i is which one of which segment

    def numbers(self, soft: Soft, count: int) -> tuple[int, ...]:
        """The numbers of a segment's `count` tokens, in their order: equal segments have equal ones."""
        key = (soft, count)
        if key not in self._numbers:
            start = len(self._named)
            self._named += [(len(self._segments), place) for place in range(count)]
            self._segments.append(soft)
            self._numbers[key] = tuple(-1 - number for number in range(start, start + count))
        return self._numbers[key]

    def put(self, ids: Tensor, embeddings: Tensor, heads: nn.ModuleDict) -> Tensor:
        """`embeddings` [rows, time, width] of ids [rows, time] on the CPU, with what `heads` make where ids are soft.

        Each head is asked once, about every segment once; gradients flow into it.
        """
        at = (ids < 0).nonzero()
        named = [self._named[-1 - number] for number in ids[ids < 0].tolist()]
        for name in dict.fromkeys(self._segments[segment].head for segment, _ in named):
            mine = [i for i, (segment, _) in enumerate(named) if self._segments[segment].head == name]
            asked = list(dict.fromkeys(named[i][0] for i in mine))
            number = {segment: i for i, segment in enumerate(asked)}
            made = heads[name]([self._segments[segment].args for segment in asked])
            vectors = made[[number[named[i][0]] for i in mine], [named[i][1] for i in mine]]
            rows, columns = at[mine].to(embeddings.device).unbind(1)
            embeddings = embeddings.index_put((rows, columns), vectors.to(embeddings))
        return embeddings


def has_soft(prompts: Sequence[Sequence[int]]) -> bool:
    """Whether a soft token stands in any of these."""
    return any(min(ids, default=0) < 0 for ids in prompts)
