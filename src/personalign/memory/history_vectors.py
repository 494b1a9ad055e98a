"""The user's past as vectors, for an encoder that makes soft tokens of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from personalign.contracts import PositiveInt, TextKind
from personalign.memory.embedding import EmbeddingMemory, asked
from personalign.memory.log import text_of
from personalign.memory.vectors import Array, key
from personalign.types import Request, UserState, Vector

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

DIGITS = 6  # of a unit vector's numbers: what lies beyond depends on which texts shared a batch


class HistoryVectors(EmbeddingMemory):
    """The user's newest `k` texts before the request, oldest first, as sentence embeddings (`history`), and that of the
    newest user turn (`vectors.request`; zeros where it has no text). A user without a text has neither.

    Any user is served, known in training or not: nothing here is learned (PPlug, arXiv 2409.11901, section 3).
    """

    needs = ()
    provides = ("state.history", "state.vectors.request")
    paper = "arXiv 2409.11901 (PPlug); arXiv 1908.10084"
    node = "preference memory / implicit / user-generated content"

    def __init__(
        self,
        *,
        k: PositiveInt | None,
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
        self._plain: dict[str, dict[str, Vector]] = {}

    def forget(self, user: str) -> None:
        super().forget(user)
        self._plain.pop(user, None)

    def recall_all(self, requests: Sequence[Request], policy: Policy | None) -> list[UserState]:
        """What is new in any of the requests and their histories is embedded together."""
        found = [
            (request, [text_of(event) for event in self.texts(request)][-(self._k or 0) :]) for request in requests
        ]
        wanted: dict[str, list[str]] = {}
        for request, texts in found:
            if texts:
                wanted.setdefault(request.user, []).extend([*texts, *([asked(request)] if asked(request) else [])])
        vectors = self.embedded(wanted, policy)
        for user, mine in vectors.items():
            known = self._plain.setdefault(user, {})
            known.update({name: _plain(vector) for name, vector in mine.items() if name not in known})
        return [self._state(request, texts) for request, texts in found]

    def _state(self, request: Request, texts: Sequence[str]) -> UserState:
        if not texts:
            return UserState()
        mine = self._plain[request.user]
        history = tuple(mine[key(text)] for text in texts)
        query = mine[key(asked(request))] if asked(request) else (0.0,) * len(history[0])
        return UserState(history=history, vectors={"request": query})


def _plain(vector: Array) -> Vector:
    return tuple(round(float(number), DIGITS) for number in vector)
