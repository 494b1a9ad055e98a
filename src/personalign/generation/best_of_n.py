"""Best-of-n: several samples of one prompt, of which the guide's favourite is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from personalign.contracts import Placement
from personalign.generation.prompting import Prompted, preference_prompt, preference_template
from personalign.types import Messages, Request, Response, Score, UserState


class BestOfN(Prompted):
    """argmax over the admitted samples of `reward@guide`; of equals the first. The prompt is the plain request.

    Samples are `sampling.n` draws, each from its own seed, so that those of a smaller n are the first of a larger
    one. The guide believes what memory recalled; that it were the truth is for the record's flag to say.
    """

    needs: ClassVar[tuple[str, ...]] = ("reward.guide",)
    provides = ()
    paper = "arXiv 2410.04070, table C2 (Best-of-N); arXiv 2112.09332"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages

    def select(self, admitted: Sequence[Response], scores: Sequence[Score] | None) -> Response:
        return favourite(admitted, scores)


class BestOfNPreference(BestOfN):
    """Best-of-n where the samples are drawn on the preference prompt.

    Raises UserError where the template lacks {profile} or has a field that nobody fills.
    """

    needs = ("reward.guide", "state.profile")
    provides = ()
    paper = "arXiv 2410.04070, table C2 (Best-of-N); arXiv 2112.09332"
    node = "alignment through feedback / inference-time / reward-guided decoding"

    def __init__(self, *, template: str, placement: Placement) -> None:
        self._template = preference_template(template, placement)
        self._placement = placement

    def render(self, request: Request, state: UserState) -> Messages:
        return preference_prompt(request, state, self._template, self._placement)


def favourite(admitted: Sequence[Response], scores: Sequence[Score] | None) -> Response:
    """The response of the largest score, of equals the first; a lone one comes without scores."""
    if scores is None:
        return admitted[0]
    return max(zip(admitted, scores, strict=True), key=lambda one: one[1].total)[0]
