"""Cached log-probabilities: right, computed once, and never taken from other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personalign.policy import lora, reference
from personalign.policy.history_tokens import HistoryTokens
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.reference import fingerprint, sequence_logprobs, shared, standing

ROWS = [
    Branches((5, 6, 7), ((8, 9), (10, 11, 12))),
    Branches((5, 6, 7), ((10, 11, 12), (13,))),
    Branches((5, 6), ((8, 9), (14, 15, 16, 17))),
]


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counted(policy: Policy, rows: list[Branches], head: str | None = None) -> list[torch.Tensor]:
        calls.append(len(rows))
        return answer_logprobs(policy, rows, head)

    monkeypatch.setattr(reference, "answer_logprobs", counted)
    return calls


def test_equal_to_single_rows_and_computed_once(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_forwards(monkeypatch)
    found = sequence_logprobs(tiny, ROWS, (), tmp_path, "reference")
    single = [[Branches(row.prompt, (a,)) for a in row.answers] for row in ROWS]
    expected = torch.tensor([[float(answer_logprobs(tiny, [one])[0].sum()) for one in pair] for pair in single])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert calls == [2]  # one batch of two prompts
    assert torch.equal(sequence_logprobs(tiny, ROWS, (), tmp_path, "reference"), found)
    assert calls == [2]


def test_a_damaged_file_is_made_again(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sequence_logprobs(tiny, ROWS, (), tmp_path, "reference")
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    calls = count_forwards(monkeypatch)
    assert torch.equal(sequence_logprobs(tiny, ROWS, (), tmp_path, "reference"), found)
    assert calls == [2]


def test_without_a_cache_nothing_is_kept(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_forwards(monkeypatch)
    found = [sequence_logprobs(tiny, ROWS, (), cache, "reference") for cache in (None, None, tmp_path)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and len(calls) == 3


def test_adapters_count_only_where_they_are_used(tiny: Policy, tmp_path: Path) -> None:
    base = fingerprint(tiny, ())
    found = sequence_logprobs(tiny, ROWS, (), tmp_path, "reference")
    tiny.add_adapter("a", LoRAConfig(2, 4.0, 0.0, ("q_proj",)))
    with_zero = fingerprint(tiny, (("a", 1.0),))
    with torch.no_grad():
        for parameter in lora.parameters(tiny.model, "a"):
            parameter.fill_(0.1)
    assert fingerprint(tiny, ()) == base
    assert len({base, with_zero, fingerprint(tiny, (("a", 1.0),)), fingerprint(tiny, (("a", 0.5),))}) == 4
    adapted = sequence_logprobs(tiny, ROWS, (("a", 1.0),), tmp_path, "reference")
    assert not torch.allclose(adapted, found)
    assert torch.equal(sequence_logprobs(tiny, ROWS, (), tmp_path, "reference"), found)


def test_other_weights_under_the_same_label_are_told_apart(tiny: Policy) -> None:
    before = fingerprint(tiny, ())
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.up_proj.weight.add_(0.01)
    assert fingerprint(tiny, ()) != before


def test_a_policy_as_it_stands_is_told_by_its_heads_too(tiny: Policy) -> None:
    """Also by a single number without a dimension, as the size of history tokens is."""
    before = standing(tiny)
    tiny.heads["history"] = HistoryTokens("mean", 4, 3, 1, torch.zeros(2, 8), size=0.5)
    kept = standing(tiny)
    tiny.heads["history"].size.fill_(0.25)
    assert len({before, kept, standing(tiny)}) == 3


def test_answers_to_one_prompt_share_rows_up_to_a_width() -> None:
    merged = shared(ROWS, 512)
    assert merged == [
        Branches((5, 6, 7), ((8, 9), (10, 11, 12), (13,))),
        Branches((5, 6), ((8, 9), (14, 15, 16, 17))),
    ]
    assert shared(ROWS, 8)[:2] == [
        Branches((5, 6, 7), ((8, 9), (10, 11, 12))),
        Branches((5, 6, 7), ((13,),)),
    ]
