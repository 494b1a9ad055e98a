"""What the generation parts share: prompts made from templates, a request and a user's state."""

from __future__ import annotations

from personalign.contracts import Generation, Placement
from personalign.runtime.templates import checked as checked
from personalign.runtime.templates import fill as fill
from personalign.types import (
    Chat,
    Deltas,
    Message,
    Messages,
    Plan,
    PolicySpec,
    Request,
    Stream,
    UserState,
    last_user_text,
)


class Prompted(Generation):
    """Generation by prompt alone: the trained policy answers what `render` gives (survey, section 4.2)."""

    def plan(self, request: Request, state: UserState, spec: PolicySpec) -> Plan:
        return Plan((stream(self.render(request, state), deltas=spec.aligned),))


def stream(
    prompt: Messages, weight: float = 1.0, deltas: Deltas = (), head: str | None = None, model: str | None = None
) -> Stream:
    return Stream((Chat(prompt),), weight, deltas, head, model)


def before_request(messages: Messages, template: str, **values: str) -> Messages:
    """Put a filled template into the newest user turn; the request goes to {request} or to the end."""
    request = last_user_text(messages)
    if "{request}" not in template:
        template += "\n\n{request}"
    return in_place(messages, fill(template, request=request, **values))


def in_place(messages: Messages, text: str) -> Messages:
    """Put a text into the place of the newest user turn."""
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=len(messages))
    return (*messages[:last], Message("user", text), *messages[last + 1 :])


def in_system(messages: Messages, text: str) -> Messages:
    """Put a text into the system turn, after what stands there."""
    if messages and messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:])
    return (Message("system", text), *messages)


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


def preference_template(template: str, placement: Placement) -> str:
    return checked(template, ("profile",), ("request",) if placement == "user" else ())


def preference_prompt(request: Request, state: UserState, template: str, placement: Placement) -> Messages:
    """The request with what is known of the user, or as it is when nothing is."""
    if not state.profile or not state.profile.strip():
        return request.messages
    if placement == "system":
        return in_system(request.messages, fill(template, profile=state.profile))
    return before_request(request.messages, template, profile=state.profile)
