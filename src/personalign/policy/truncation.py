"""Prompts that are too long: what is cut away, and what never is."""

from __future__ import annotations

from dataclasses import replace

from personalign.contracts import UserError
from personalign.policy import chat
from personalign.policy.policy import Policy
from personalign.types import Messages

TRIES = 8  # cutting text may change how its neighbours are tokenised


def encode_within(policy: Policy, messages: Messages, limit: int, name: str) -> list[int]:
    """Prompt ids of at most `limit` tokens.

    What is over is cut from the start of the oldest user turn that has text left, so that the newest text, where
    the question stands, stays longest; system and assistant turns stay whole. Raises UserError, naming the
    request `name`, when these alone are too long.
    """
    for _ in range(TRIES + len(messages)):
        ids = policy.encode(messages)
        if len(ids) <= limit:
            return ids
        messages = _shortened(policy, messages, len(ids) - limit)
        if not any(m.role == "user" and m.content for m in messages):
            break
    raise UserError(
        f"the prompt of {name!r} does not fit into {limit} tokens: raise max_prompt of alignment, or have less "
        "recalled (memory_budget)"
    )


def _shortened(policy: Policy, messages: Messages, excess: int) -> Messages:
    """Without the first `excess` tokens of the oldest user turn that has any text."""
    place = next((i for i, m in enumerate(messages) if m.role == "user" and m.content), None)
    if place is None:
        return messages
    ids = chat.encode_text(policy.tokenizer, messages[place].content)
    kept = policy.decode(ids[excess:]).lstrip("\ufffd")
    if len(kept) >= len(messages[place].content):
        kept = ""
    return (*messages[:place], replace(messages[place], content=kept), *messages[place + 1 :])
