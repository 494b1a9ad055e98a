"""The request as it is: the base, or the trained policy without any knowledge of the user."""

from __future__ import annotations

from personalign.generation.prompting import Prompted
from personalign.types import Messages, Request, UserState


class Plain(Prompted):
    """Answers the request as it is, whoever asks."""

    needs = ()
    provides = ()
    paper = "arXiv 2410.04070, table 2 (Base)"
    node = "personalized generation"

    def render(self, request: Request, state: UserState) -> Messages:
        return request.messages
