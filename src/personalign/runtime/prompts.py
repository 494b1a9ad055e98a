"""Where in a chat something is told: before the request, in its place, in the system turn."""

from __future__ import annotations

from personalign.contracts import Placement
from personalign.runtime.templates import checked, fill
from personalign.types import Message, Messages, last_user_text


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


def preference_template(template: str, placement: Placement) -> str:
    return checked(template, ("profile",), ("request",) if placement == "user" else ())


def told(messages: Messages, profile: str, template: str, placement: Placement) -> Messages:
    """The messages with a text about the user, in a `preference_template`."""
    if placement == "system":
        return in_system(messages, fill(template, profile=profile))
    return before_request(messages, template, profile=profile)
