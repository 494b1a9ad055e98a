"""Pairs that share their two answers: they are read once, with the losses and gradients of reading each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from personalign.alignment.preference import Preference
from personalign.policy import lora
from personalign.policy.logprobs import Branches
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy

A, B, C = (40, 41, 42), (50, 51), (60, 61, 62, 63)
ROWS = [Branches((5, 6, 7), two) for two in ((A, B), (B, A), (A, B), (C, A), (A, C))]
OTHERS = [Branches((5, 6, 8), (A, B)), Branches((5, 6, 7), (B, A))]


@pytest.fixture
def objective(tiny: Policy) -> Preference:
    for name in ("one", "two"):
        tiny.add_adapter(name, LoRAConfig(4, 8, 0.0, ("q_proj", "down_proj")))
        for p in lora.parameters(tiny.model, name):
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name) + p.numel()))
            p.requires_grad_(True)
    reference = {group: torch.randn(len(rows), 2) for group, rows in (("one", ROWS), ("two", OTHERS))}
    deltas = {name: ((name, 1.0),) for name in ("one", "two")}
    return Preference(tiny, {"one": ROWS, "two": OTHERS}, reference, deltas, 0.3, imitation=0.2)


def learned(objective: Preference, batches: list[dict[str, list[int]]]) -> tuple[float, list[Tensor]]:
    """The mean loss over batches, and its gradients."""
    parameters = [p for name in ("one", "two") for p in lora.parameters(objective.policy.model, name)]
    loss = torch.stack([objective(batch)[0] for batch in batches]).mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(loss.detach()), [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]


def rows_fed(objective: Preference, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each forward has, as they come."""
    fed: list[int] = []
    hidden = objective.policy.hidden

    def counted(**inputs: Tensor) -> Tensor:
        fed.append(len(inputs["input_ids"]))
        return hidden(**inputs)

    monkeypatch.setattr(objective.policy, "hidden", counted)
    return fed


def test_opposed_pairs_are_one_row(objective: Preference, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = rows_fed(objective, monkeypatch)
    together, gradients = learned(objective, [{"one": [0, 1, 2, 3, 4]}])
    assert fed == [2]
    alone, wanted = learned(objective, [{"one": [i]} for i in range(5)])
    assert fed == [2, 1, 1, 1, 1, 1]
    assert together == pytest.approx(alone, abs=1e-6)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_other_prompts_and_other_adapters_are_rows_of_their_own(
    objective: Preference, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = rows_fed(objective, monkeypatch)
    together, gradients = learned(objective, [{"one": [0, 1], "two": [0, 1]}])
    assert fed == [3]  # the same answers behind the same prompt are read by two adapters
    first, left = learned(objective, [{"one": [0]}, {"one": [1]}])
    second, right = learned(objective, [{"two": [0]}, {"two": [1]}])
    assert together == pytest.approx(first + second, abs=1e-6)
    for one, a, b in zip(gradients, left, right, strict=True):
        torch.testing.assert_close(one, a + b, atol=1e-6, rtol=1e-4)
