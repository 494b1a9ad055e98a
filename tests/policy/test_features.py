"""Features of answers: against plain forward passes, read once, and never taken from other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personalign.policy import lora, reference
from personalign.policy.features import Reader
from personalign.policy.logprobs import Branches, Pooling, answer_states
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.types import Message

ASKED = (Message("user", "How are you today?"),)
TEXTS = ("Fine.", "Not so well, thank you for asking", "")


def naive(policy: Policy, text: str, pooling: Pooling) -> torch.Tensor:
    """One unpadded row through the whole model; its hidden_states[-1] stand behind the last norm."""
    prompt, answer = policy.encode(ASKED), policy.encode_answer(text)
    with torch.no_grad():
        states = policy.model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states[-1][0]
    return states[-1] if pooling == "last" else states[len(prompt) :].mean(0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_are_the_last_hidden_states(pooling: Pooling, tiny: Policy) -> None:
    reader = Reader((), pooling, 100, 100)
    row = reader.row(tiny, ASKED, TEXTS, "r")
    other = reader.row(tiny, (Message("user", "?"),), TEXTS[1:2], "s")
    found, alone = reader.features(tiny, [row, other], "features")
    assert found.shape == (3, 32) and alone.shape == (1, 32) and found.dtype == torch.float32
    expected = torch.stack([naive(tiny, text, pooling) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(found[1], alone[0], atol=1e-3), "the prompt counts"


def test_every_answer_ends_whole_or_cut(tiny: Policy) -> None:
    end = tiny.tokenizer.eos_token_id
    row = Reader((), "last", 100, 4).row(tiny, ASKED, TEXTS, "r")
    whole = [tiny.encode_answer(text)[:-1] for text in TEXTS]
    assert row.answers == tuple((*ids[:3], end) for ids in whole) and row.answers[2] == (end,)
    assert len(Reader((), "last", 30, 4).row(tiny, (Message("user", "word " * 50),), TEXTS, "r").prompt) <= 30


def test_what_was_read_is_not_read_again(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(policy: Policy, rows: list[Branches], pooling: Pooling, layer: int | None) -> torch.Tensor:
        calls.append(len(rows))
        return answer_states(policy, rows, pooling, layer)

    monkeypatch.setattr(reference, "answer_states", counted)
    tiny.cache = tmp_path
    tiny.add_adapter("a", LoRAConfig(2, 4.0, 0.0, ("q_proj",)))
    with torch.no_grad():
        for parameter in lora.parameters(tiny.model, "a"):
            parameter.fill_(0.1)
    mean, last = Reader((), "mean", 100, 100), Reader((), "last", 100, 100)
    adapted = Reader((("a", 1.0),), "mean", 100, 100)
    rows = [mean.row(tiny, ASKED, TEXTS, "r")] * 2
    found = [reader.features(tiny, rows, "features")[1] for reader in (mean, last, adapted)]
    assert calls == [1, 1, 1] and not torch.allclose(found[0], found[2])
    again = [reader.features(tiny, rows, "features")[0] for reader in (mean, last, adapted)]
    assert calls == [1, 1, 1] and all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert mean.features(tiny, [], "nothing") == []
