"""Ratings in standard units, so that dimensions can be weighed against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping

from personalign.contracts import UserError
from personalign.ratings.dimensions import DIMENSIONS, WORD, rate


class Ratings:
    """r_d(text) = (raw_d - center_d) / scale_d, held within +-clip, so that no degenerate text wins by an outlier.

    A text without words is neutral, 0, on all but its length. Raises UserError where `center` or `scale` lacks a
    dimension or has one that cannot be computed, a centre is not finite, or a scale is not that and above 0.
    """

    def __init__(self, center: Mapping[str, float], scale: Mapping[str, float], clip: float | None) -> None:
        """`center` and `scale` are in the raw units of each dimension, `clip` in standard deviations."""
        _complete("center", center)
        _complete("scale", scale)
        if lost := [name for name, value in center.items() if not math.isfinite(value)]:
            raise UserError(f"ratings: center of {', '.join(lost)} must be finite")
        if flat := [name for name, value in scale.items() if not 0 < value < math.inf]:
            raise UserError(f"ratings: scale of {', '.join(flat)} must be above 0 and finite")
        self._center, self._scale = dict(center), dict(scale)
        self._clip = math.inf if clip is None else clip

    def __call__(self, text: str) -> dict[str, float]:
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
        raise UserError(f"ratings: {key}: {'; '.join(wrong)}")
