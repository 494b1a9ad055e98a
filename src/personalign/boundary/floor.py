"""Floors on universal values: what falls below one may not be given, whatever the user prefers."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.contracts import Bound, Boundary, UserError
from personalign.plans import Plan
from personalign.types import Request, Response, Score


class Floor(Boundary):
    """max (p^u)^T r(y) subject to v_k(y) >= tau_k for each universal value k: this part keeps the constraint, and
    the generation selects among what it admits: a workflow's final answers, and where one of them is not admitted the
    best of its other answers that is. With nothing admitted of all that was written the system refuses.

    The survey puts universal values above personal ones in words (section 3.2); the formula is our reading. Values
    are `reward@universal`'s dimensions. Raises UserError without a floor, and for one on a value that is not scored.
    """

    needs = ("reward.universal",)
    provides = ()
    paper = "arXiv 2503.17003, section 3.2"
    node = "objectives / universal values"

    def __init__(self, *, floors: dict[str, Bound]) -> None:
        """`floors` holds tau_k by the value's name, in the scorer's units; -inf admits everything."""
        if not floors:
            raise UserError("boundary floor has no floor: set evaluation.floors.harmlessness=0, or boundary=none")
        self.floors = floors

    def shape(self, plan: Plan) -> Plan:
        return plan

    def admit(
        self, request: Request, responses: Sequence[Response], scores: Sequence[Score] | None
    ) -> Sequence[Response]:
        """Those at or above every floor, in their order."""
        assert scores is not None, "this part needs reward.universal"
        for score in scores:
            self._check(score)
        return [response for response, score in zip(responses, scores, strict=True) if score.meets(self.floors)]

    def _check(self, score: Score) -> None:
        if lacking := [name for name in self.floors if name not in score.dimensions]:
            raise UserError(
                f"boundary floor: reward@universal scores {', '.join(score.dimensions) or 'no named value'}, not "
                f"{', '.join(lacking)}: choose another scorer, or take the floor away (~evaluation.floors.{lacking[0]})"
            )
