"""The reward whose truth is known: a stance times what can be computed of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalign.contracts import PositiveFloat, Reward, UserError
from personalign.reward.dimensions import DIMENSIONS, WORD, rate
from personalign.types import Request, Score, Stance, UserState


class Exact(Reward):
    """R_u(y) = (p^u)^T r(y): the state's stance times the standardised ratings of the text.

    r_d = (raw_d - center_d) / scale_d, held within +-clip, so that no degenerate text wins by an outlier. A
    text without words is neutral on all but its length. Without a stance every total is 0; a stance on a
    dimension that cannot be computed raises UserError. Survey (arXiv 2503.17003), section 4.1.
    """

    needs = ("state.stance",)
    provides = ()
    paper = "arXiv 2503.17003, section 4.1"
    node = "preference memory / explicit"

    def __init__(self, *, center: dict[str, float], scale: dict[str, float], clip: PositiveFloat | None) -> None:
        """`center` and `scale` are in the raw units of each dimension, `clip` in standard deviations."""
        _complete("center", center)
        _complete("scale", scale)
        if flat := [name for name, value in scale.items() if not value > 0]:
            raise UserError(f"reward exact: scale of {', '.join(flat)} must be above 0")
        self._center, self._scale = center, scale
        self._clip = float("inf") if clip is None else clip

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        stance = state.stance or Stance((), ())
        if unknown := [name for name in stance.dimensions if name not in DIMENSIONS]:
            raise UserError(
                f"user {request.user}: reward exact cannot rate {', '.join(unknown)}; it rates {', '.join(DIMENSIONS)}"
            )
        ratings = [self.ratings(text) for text in responses]
        return [Score(stance.dot(rating), rating) for rating in ratings]

    def ratings(self, text: str) -> dict[str, float]:
        """The standardised rating of a text on every dimension."""
        spoken = WORD.search(text) is not None
        return {
            name: self._standard(name, raw) if spoken or name == "length" else 0.0 for name, raw in rate(text).items()
        }

    def _standard(self, name: str, raw: float) -> float:
        value = (raw - self._center[name]) / self._scale[name]
        return max(-self._clip, min(self._clip, value))


def _complete(key: str, values: Mapping[str, float]) -> None:
    wrong = [f"{name} is missing" for name in DIMENSIONS if name not in values]
    wrong += [f"there is no dimension {name}" for name in values if name not in DIMENSIONS]
    if wrong:
        raise UserError(f"reward exact: {key}: {'; '.join(wrong)}")
