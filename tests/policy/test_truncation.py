"""Prompts that are too long lose their oldest user text, and nothing else."""

from __future__ import annotations

import pytest

from personalign.contracts import UserError
from personalign.policy.policy import Policy
from personalign.policy.truncation import encode_within
from personalign.types import Message

TALK = (
    Message("system", "Be kind."),
    Message("user", "x" * 80),
    Message("assistant", "Yes."),
    Message("user", "And what of tea?"),
)


def test_a_prompt_that_fits_is_left_alone(tiny: Policy) -> None:
    assert encode_within(tiny, TALK, 400, "r") == tiny.encode(TALK)


def test_the_oldest_user_text_is_cut_at_its_start(tiny: Policy) -> None:
    whole = tiny.encode(TALK)
    cut = encode_within(tiny, TALK, len(whole) - 30, "r")
    assert len(cut) == len(whole) - 30
    text = tiny.decode(cut)
    assert "Be kind." in text and "Yes." in text and "And what of tea?" in text
    assert text.count("x") == 50


def test_then_the_next_one(tiny: Policy) -> None:
    whole = tiny.encode(TALK)
    text = tiny.decode(encode_within(tiny, TALK, len(whole) - 85, "r"))
    assert "x" not in text and "hat of tea?" in text and "And w" not in text


def test_letters_of_several_tokens_are_cut_cleanly(tiny: Policy) -> None:
    messages = (Message("user", "\u00e4\u00f6\u00fc" * 20 + "end"),)
    for limit in range(40, 60):
        ids = encode_within(tiny, messages, limit, "r")
        assert len(ids) <= limit
        assert "\ufffd" not in tiny.decode(ids) and "end" in tiny.decode(ids)


def test_what_cannot_be_cut_is_said(tiny: Policy) -> None:
    with pytest.raises(UserError, match=r"'r7'.*12 tokens.*max_prompt"):
        encode_within(tiny, TALK, 12, "r7")
    with pytest.raises(UserError, match="max_prompt"):
        encode_within(tiny, (Message("system", "s" * 100),), 50, "r")
