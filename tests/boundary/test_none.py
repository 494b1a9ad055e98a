"""No boundary changes nothing and refuses nothing."""

from __future__ import annotations

from personalign.boundary.none import NoBoundary
from personalign.plans import Chat, Plan, Stream
from personalign.types import Message, Request, Response


def test_plans_and_responses_pass():
    ask = Request(id="q", user="ada", messages=(Message("user", "Hi"),))
    plan = Plan((Stream((Chat(ask.messages),)),))
    responses = [Response(request="q", text="one"), Response(request="q", text="two", sample=1)]
    assert NoBoundary().shape(plan) is plan
    assert list(NoBoundary().admit(ask, responses, None)) == responses
    assert list(NoBoundary().admit(ask, [], None)) == []
