"""Recall by meaning: the texts whose embedding is nearest to the request's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from personalign.contracts import PositiveInt, TextKind
from personalign.memory.embedding import EmbeddingMemory, asked
from personalign.memory.log import best, text_of
from personalign.memory.vectors import Array, key
from personalign.types import Event, Request, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

DIGITS = 6  # of a cosine: what lies beyond depends on which texts shared a batch, and must not decide a tie


class Dense(EmbeddingMemory):
    """Recalls the `k` events of the user whose text is nearest to the newest user turn, by the cosine of their
    sentence embeddings (Sentence-BERT, arXiv 1908.10084; dense retrieval per user: LaMP, arXiv 2304.11406, section 3).

    Equal cosines, and all where the turn has no text, go to the newest.
    """

    needs = ()
    provides = ("state.snippets",)
    paper = "arXiv 1908.10084; arXiv 2304.11406, section 3"
    node = "preference memory / implicit / user-generated content"

    def __init__(
        self,
        *,
        k: PositiveInt,
        name: str,
        revision: str | None,
        max_tokens: PositiveInt,
        batch_size: PositiveInt,
        kinds: list[TextKind],
        cache: str,
    ) -> None:
        super().__init__(
            name=name, revision=revision, max_tokens=max_tokens, batch_size=batch_size, kinds=kinds, cache=cache
        )
        self._k = k

    def recall_all(self, requests: Sequence[Request], policy: Policy | None) -> list[UserState]:
        """What is new in any of the requests and their histories is embedded together."""
        found = [(request, self.texts(request)) for request in requests]
        vectors = self._embed(found, policy)
        return [best(events, _cosines(request, events, vectors), self._k) for request, events in found]

    def _embed(
        self, found: Sequence[tuple[Request, Sequence[Event]]], policy: Policy | None
    ) -> Mapping[str, Mapping[str, Array]]:
        """Every vector that is needed, by user and text."""
        wanted: dict[str, list[str]] = {}
        for request, events in found:
            if events and asked(request):
                wanted.setdefault(request.user, []).extend([*map(text_of, events), asked(request)])
        return self.embedded(wanted, policy)


def _cosines(request: Request, events: Sequence[Event], vectors: Mapping[str, Mapping[str, Array]]) -> list[float]:
    query, mine = asked(request), vectors.get(request.user, {})
    if not query:
        return [0.0] * len(events)
    return [round(float(mine[key(text_of(event))] @ mine[key(query)]), DIGITS) for event in events]
