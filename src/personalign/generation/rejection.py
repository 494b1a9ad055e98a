"""Rejection sampling: draws one by one until the guide is content."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.contracts import Bound, Placement, PositiveInt
from personalign.generation.best_of_n import favourite
from personalign.generation.preference_prompt import PreferencePrompt
from personalign.plans import Plan, PolicySpec
from personalign.types import Request, Response, Score, UserState


class Rejection(PreferencePrompt):
    """Draws on the preference prompt until the guide gives one `threshold` or more, or `draws` have been drawn; gives
    the best so far, of equals the first; of those that the boundary admits, should it not admit that one.

    The draws are those of best-of-n in their order, so that with a threshold out of reach it is best-of-`draws`, which
    stops early wherever it may. With several samples each draws for itself. The threshold is in units of the guide.
    """

    needs = ("state.profile", "reward.guide")
    provides = ()
    paper = "arXiv 2112.09332, section 3.2 (rejection sampling), with a threshold"
    node = "alignment through feedback / inference-time / reward-guided decoding"
    watched = True

    def __init__(self, *, threshold: Bound, draws: PositiveInt, template: str, placement: Placement) -> None:
        super().__init__(template=template, placement=placement)
        self._threshold, self._draws = threshold, draws

    def next(self, request: Request, state: UserState, responses: Sequence[Response], spec: PolicySpec) -> Plan | None:
        """One more draw, unless one is good enough or all have been drawn."""
        if len(responses) >= self._draws or max(s.total for s in _scores(responses)) >= self._threshold:
            return None
        return self.plan(request, state, spec)

    def answers(self, responses: Sequence[Response]) -> Sequence[Response]:
        """All draws, by the guide's score."""
        scored = zip(responses, _scores(responses), strict=True)
        return [response for response, _ in sorted(scored, key=lambda one: -one[1].total)]

    def select(self, admitted: Sequence[Response], scores: Sequence[Score] | None) -> Response:
        return favourite(admitted, scores)


def _scores(responses: Sequence[Response]) -> list[Score]:
    scores = [response.score for response in responses if response.score is not None]
    assert len(scores) == len(responses), "a watched workflow is shown every score"
    return scores
