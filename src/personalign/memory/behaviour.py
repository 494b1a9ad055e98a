"""What the user did with answers: which they chose over which, and how they rated others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from personalign.contracts import Fraction, NonNegativeFloat, PositiveInt, UserError
from personalign.memory.bm25 import BM25
from personalign.runtime.templates import checked, fill
from personalign.types import PAYLOADS, Event, Request, Snippet, UserState

if TYPE_CHECKING:
    from personalign.policy.policy import Policy


class Behaviour(BM25):
    """Recalls `k` of the user's choices and ratings and says each as what they did: 'preferred ... to ...'.

    `by` recency takes the newest; by similarity those whose request and answer match the newest user turn best (see
    `BM25`), of equals the newest. Snippets keep their payloads, so that in-context examples can be made of them.
    Raises UserError for a choice without what was rejected, and for a rating without its number.
    """

    needs = ()
    provides = ("state.snippets",)
    paper = "arXiv 2503.17003, section 4.1; arXiv 2304.10149, section 3 (interactions told in the prompt)"
    node = "preference memory / implicit / behavioural signals"

    def __init__(
        self,
        *,
        k: PositiveInt,
        by: Literal["recency", "similarity"],
        k1: NonNegativeFloat,
        b: Fraction,
        choice: str,
        rating: str,
    ) -> None:
        super().__init__(k=k, k1=k1, b=b, kinds=["choice", "rating"])
        self._by = by
        self._choice = checked(choice, ("prompt", "chosen"), ("rejected",))
        self._rating = checked(rating, ("prompt", "response", "rating"))

    def recall(self, request: Request, policy: Policy | None) -> UserState:
        return UserState(snippets=tuple(map(self._told, super().recall(request, policy).snippets)))

    def _scores(self, request: Request, events: Sequence[Event]) -> list[float]:
        return super()._scores(request, events) if self._by == "similarity" else [0.0] * len(events)

    def _told(self, snippet: Snippet) -> Snippet:
        template = self._choice if "chosen" in snippet.payload else self._rating
        said = {name: str(value).strip() for name, value in snippet.payload.items()}
        return replace(snippet, text=fill(template, **said))

    def _check(self, event: Event) -> None:
        super()._check(event)
        missing = [name for name in PAYLOADS[event.kind] if name not in event.payload]
        if missing:
            raise UserError(
                f"event {event.id!r} of user {event.user!r} is a {event.kind} without {' and '.join(missing)}, which "
                "memory=behaviour tells: add it, or use memory=recency"
            )
