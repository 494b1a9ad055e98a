"""No feedback: an offline experiment."""

from __future__ import annotations

from collections.abc import Sequence

from personalign.contracts import Feedback
from personalign.types import Event, Request, Response


class NoFeedback(Feedback):
    """Nobody answers: responses give no events."""

    needs = ()
    provides = ()
    paper = "arXiv 2503.17003, section 4.3"
    node = "alignment through feedback"

    def events(self, request: Request, responses: Sequence[Response]) -> Sequence[Event]:
        return ()
