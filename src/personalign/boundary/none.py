"""No boundary: every answer may be given."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.contracts import Boundary
from personalign.plans import Plan
from personalign.types import Request, Response, Score


class NoBoundary(Boundary):
    """Leaves plans as they are and admits every response."""

    needs = ()
    provides = ()
    paper = "arXiv 2503.17003, section 3.2"
    node = "objectives / universal values"

    def shape(self, plan: Plan) -> Plan:
        return plan

    def admit(
        self, request: Request, responses: Sequence[Response], scores: Sequence[Score] | None
    ) -> Sequence[Response]:
        return responses
