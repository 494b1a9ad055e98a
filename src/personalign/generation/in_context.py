"""In-context examples: answers that the user chose before stand in the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from personalign.contracts import PositiveInt
from personalign.generation.prompting import Prompted, before_request, checked, fill
from personalign.types import Message, Messages, Request, UserState


class InContext(Prompted):
    """Shows the recalled choices, the first recalled one nearest to the request.

    `form` turns makes each an earlier exchange of the chat (request, liked answer); message writes them all
    into the newest user turn. Recalled events that are no choice are left out, as are those that would take
    the examples beyond `budget` characters; with none left the user is asked plainly.
    """

    needs: ClassVar[tuple[str, ...]] = ("state.snippets",)
    provides = ()
    paper = "arXiv 2005.14165; arXiv 2503.17003, section 4.2"
    node = "personalized generation / prompting / implicit injection"

    def __init__(self, *, form: Literal["turns", "message"], template: str, example: str, budget: PositiveInt) -> None:
        self._form = form
        self._template = checked(template, ("examples",), ("request",))
        self._example = checked(example, ("prompt", "chosen"), ("rejected",))
        self._budget = budget

    def render(self, request: Request, state: UserState) -> Messages:
        choices = self._choices(state)
        if not choices:
            return request.messages
        if self._form == "turns":
            return _after_system(request.messages, tuple(turn for c in choices for turn in _exchange(c)))
        examples = "\n\n".join(self._shown(choice) for choice in choices)
        return before_request(request.messages, self._template, examples=examples)

    def _choices(self, state: UserState) -> list[Mapping[str, Any]]:
        """The choices that fit the budget, the first recalled one last."""
        kept: list[Mapping[str, Any]] = []
        left = self._budget
        for payload in (s.payload for s in state.snippets if {"prompt", "chosen"} <= set(s.payload)):
            size = self._size(payload)
            if size <= left:
                left -= size
                kept.insert(0, payload)
        return kept

    def _size(self, choice: Mapping[str, Any]) -> int:
        if self._form == "turns":
            return sum(len(turn.content) for turn in _exchange(choice))
        return len(self._shown(choice))

    def _shown(self, choice: Mapping[str, Any]) -> str:
        return fill(self._example, **{name: str(value) for name, value in choice.items()})


def _exchange(choice: Mapping[str, Any]) -> Messages:
    return Message("user", str(choice["prompt"])), Message("assistant", str(choice["chosen"]))


def _after_system(messages: Messages, turns: Messages) -> Messages:
    at = 1 if messages and messages[0].role == "system" else 0
    return (*messages[:at], *turns, *messages[at:])
