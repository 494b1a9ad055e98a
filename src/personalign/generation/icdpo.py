"""In-context DPO: samples behind the user's own choices, ranked by how much likelier these choices make them."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.generation.best_of_n import favourite
from personalign.generation.in_context import InContext
from personalign.types import Response, Score


class ICDPO(InContext):
    """argmax over the admitted samples of log pi(y | demonstrations, x) - log pi(y | x), of equals the first.

    The demonstrations are the recalled choices, as `InContext` shows them. The score is what reward=implicit_prompt
    makes of an answer, whatever its beta, and without training reward=implicit, which always compares with the
    untouched base; another guide may be chosen in its place. A user without choices is asked plainly: all samples then
    score 0 by the former, and the first is given.
    """

    needs = ("state.snippets", "reward.guide")
    provides = ()
    paper = "arXiv 2402.09320 (ICDPO)"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    def select(self, admitted: Sequence[Response], scores: Sequence[Score] | None) -> Response:
        return favourite(admitted, scores)
