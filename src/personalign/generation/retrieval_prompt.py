"""Retrieval-augmented prompting: recalled texts stand in the prompt as notes."""

from __future__ import annotations

from personalign.contracts import PositiveInt
from personalign.generation.prompting import Prompted, before_request, checked, fill, recalled
from personalign.types import Messages, Request, UserState


class RetrievalPrompt(Prompted):
    """Writes the recalled texts into the newest user turn, in the order of recall.

    The texts together take at most `budget` characters: the one that goes beyond is cut, those after it are
    left out. With nothing recalled the user is asked plainly.
    """

    needs = ("state.snippets",)
    provides = ()
    paper = "arXiv 2304.11406, section 3"
    node = "personalized generation / prompting / retrieval augmentation"

    def __init__(self, *, template: str, note: str, budget: PositiveInt) -> None:
        self._template = checked(template, ("notes",), ("request",))
        self._note = checked(note, ("text",))
        self._budget = budget

    def render(self, request: Request, state: UserState) -> Messages:
        notes = [fill(self._note, text=text) for text in recalled(state, self._budget)]
        if not notes:
            return request.messages
        return before_request(request.messages, self._template, notes="\n".join(notes))
