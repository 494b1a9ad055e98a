"""Heads on hidden states: what they are at first, and how they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personalign.contracts import UserError
from personalign.policy.heads import HiddenHead, StanceHead, embed, load_head, save_head
from personalign.policy.policy import Policy


def test_a_hidden_head_is_the_identity_at_first() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        hidden = torch.randn(3, 5, 8).to(dtype)
        assert torch.equal(HiddenHead(8)(hidden), hidden)


def test_a_stance_head_is_neutral_at_first_and_bounded(tiny: Policy) -> None:
    head = StanceHead(("warmth", "grade"), 32)
    assert head.stance(tiny, "I like short answers.").as_dict() == {"warmth": 0.0, "grade": 0.0}
    statements = torch.stack([embed(tiny, text) for text in ("Be brief.", "Be warm.", "Tell me everything.")])
    head.standardise(statements)
    with torch.no_grad():
        head.linear.weight.normal_(0, 100)
        assert head(statements).abs().max() <= 1


def test_an_embedding_is_of_the_text_and_of_the_base(tiny: Policy) -> None:
    assert embed(tiny, "Be brief.").shape == (32,)
    assert not torch.allclose(embed(tiny, "Be brief."), embed(tiny, "Be warm."))


def test_files_round_trip_and_misfits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stance.safetensors"
    head = StanceHead(("warmth",), 8)
    with torch.no_grad():
        head.linear.weight.normal_()
    head.standardise(torch.randn(4, 8))
    save_head(head, path)
    again = StanceHead(("warmth",), 8)
    load_head(again, path)
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), again.state_dict().values(), strict=True))
    for other in (StanceHead(("warmth", "grade"), 8), HiddenHead(8)):
        with pytest.raises(UserError, match=r"stance\.safetensors cannot be read"):
            load_head(other, path)
    with pytest.raises(UserError, match="cannot be read"):
        load_head(again, tmp_path / "none.safetensors")
