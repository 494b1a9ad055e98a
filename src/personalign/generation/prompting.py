"""What the generation parts share: prompts made from templates, a request and a user's state."""

from __future__ import annotations

from personalign.contracts import Generation, Placement
from personalign.plans import Candidates, Chat, Deltas, Plan, PolicySpec, Stream
from personalign.runtime.prompts import before_request as before_request
from personalign.runtime.prompts import in_place as in_place
from personalign.runtime.prompts import in_system as in_system
from personalign.runtime.prompts import preference_template as preference_template
from personalign.runtime.prompts import told as told
from personalign.runtime.templates import checked as checked
from personalign.runtime.templates import fill as fill
from personalign.types import Messages, Request, UserState


class Prompted(Generation):
    """Generation by prompt alone: the trained policy answers what `render` gives (survey, section 4.2)."""

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        return Plan((stream(self.render(request, state), deltas=spec.aligned),))


def stream(
    prompt: Messages, weight: float = 1.0, deltas: Deltas = (), head: str | None = None, model: str | None = None
) -> Stream:
    return Stream((Chat(prompt),), weight, deltas, head, model=model)


def likeliest(top_k: int | None) -> Candidates:
    """The likeliest tokens of a plan's first stream, or for None all."""
    return Candidates() if top_k is None else Candidates("top_k", k=top_k)


def recalled(state: UserState, budget: int) -> list[str]:
    """The recalled texts in their order, of `budget` characters together: the one that goes beyond is cut, those after
    it are left out."""
    texts: list[str] = []
    left = budget
    for snippet in state.snippets:
        text = snippet.text.strip()[:left]
        left -= len(text)
        if text:
            texts.append(text)
    return texts


def preference_prompt(request: Request, state: UserState, template: str, placement: Placement) -> Messages:
    """The request with what is known of the user, or as it is when nothing is."""
    if not state.profile or not state.profile.strip():
        return request.messages
    return told(request.messages, state.profile, template, placement)
