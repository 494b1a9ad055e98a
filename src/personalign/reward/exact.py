"""The reward whose truth is known: a stance times what can be computed of the text."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.contracts import PositiveFloat, Reward, UserError
from personalign.ratings.dimensions import DIMENSIONS
from personalign.ratings.standard import Ratings
from personalign.types import Request, Score, Stance, UserState


class Exact(Reward):
    """R_u(y) = (p^u)^T r(y): the state's stance times the standardised ratings of the text.

    Without a stance every total is 0; a stance on a dimension that cannot be computed raises UserError. Survey
    (arXiv 2503.17003), section 4.1.
    """

    needs = ("state.stance",)
    provides = ()
    paper = "arXiv 2503.17003, section 4.1"
    node = "preference memory / explicit"

    def __init__(
        self, *, center: dict[str, float], scale: dict[str, PositiveFloat], clip: PositiveFloat | None
    ) -> None:
        """See `Ratings`."""
        self.ratings = Ratings(center, scale, clip)

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        stance = state.stance or Stance((), ())
        if unknown := [name for name in stance.dimensions if name not in DIMENSIONS]:
            raise UserError(
                f"user {request.user}: reward exact cannot rate {', '.join(unknown)}; it rates {', '.join(DIMENSIONS)}"
            )
        ratings = [self.ratings(text) for text in responses]
        return [Score(stance.dot(rating), rating) for rating in ratings]
