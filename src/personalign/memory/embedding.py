"""Users' texts embedded by a frozen encoder: the base of the memories that recall by vectors, or recall vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from personalign.memory.log import EventMemory
from personalign.memory.vectors import Array, Vectors
from personalign.types import Request, UserState, last_user_text

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class EmbeddingMemory(EventMemory):
    """Keeps events. Every text that is read, the requests' included, is embedded once and its vector kept in the cache
    below the user, whence `forget` removes it. Raises UserError as `load_embedder` does."""

    def __init__(
        self,
        *,
        name: str,
        revision: str | None,
        max_tokens: int,
        batch_size: int,
        kinds: Sequence[str],
        cache: str,
    ) -> None:
        super().__init__(kinds)
        self._encoder = (name, revision, cache, max_tokens, batch_size)
        self._vectors = Vectors(cache)

    def forget(self, user: str) -> None:
        super().forget(user)
        self._vectors.forget(user)

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        return self.recall_all([request], policy)[0]

    def embedded(self, wanted: Mapping[str, Iterable[str]], policy: Policy | None) -> Mapping[str, Mapping[str, Array]]:
        """Unit vectors of users' texts, by user and `key` of the text; what is new is embedded together."""
        if not wanted:
            return {}
        from personalign.policy.embedder import load_embedder

        embedder = load_embedder(*self._encoder)
        embedder.model.to("cpu" if policy is None else policy.device)
        return self._vectors.of(wanted, embedder)


def asked(request: Request) -> str:
    """The text of a request that is embedded: its newest user turn."""
    return last_user_text(request.messages).strip()
