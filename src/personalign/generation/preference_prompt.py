"""Preference prompting: the user's profile stands in the prompt."""

from __future__ import annotations

from typing import ClassVar

from personalign.contracts import Placement
from personalign.generation.prompting import Prompted, preference_prompt, preference_template
from personalign.types import Messages, Request, UserState


class PreferencePrompt(Prompted):
    """Puts the profile into the system or the newest user turn; a user without one is asked plainly.

    Raises UserError where the template lacks {profile} or has a field that nobody fills.
    """

    needs: ClassVar[tuple[str, ...]] = ("state.profile",)
    provides = ()
    paper = "arXiv 2310.11564; arXiv 2410.04070, table 2 (Preference Prompting)"
    node = "personalized generation / prompting / explicit injection"

    def __init__(self, *, template: str, placement: Placement) -> None:
        self._template = preference_template(template, placement)
        self._placement = placement

    def render(self, request: Request, state: UserState) -> Messages:
        return preference_prompt(request, state, self._template, self._placement)
