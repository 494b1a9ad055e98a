"""Without feedback no answer gives events."""

from __future__ import annotations

from personalign.feedback.none import NoFeedback
from personalign.types import Message, Request, Response


def test_no_events():
    ask = Request(id="q", user="ada", messages=(Message("user", "Hi"),))
    assert list(NoFeedback().events(ask, [Response(request="q", text="one")])) == []
