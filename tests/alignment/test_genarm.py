"""Autoregressive reward models: the loss against a transcription in float64, and what a stage leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from personalign.alignment.batches import Limits, encode
from personalign.alignment.contrasts import contrasting
from personalign.alignment.genarm import GenARM
from personalign.alignment.losses import margins
from personalign.alignment.pad import Pad
from personalign.alignment.preference import Preference, references
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.logprobs import Branches
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.types import Pair

Make = Callable[..., Any]
ROWS = [
    Branches((5, 6, 7, 8), ((30, 31, 2), (40, 41, 42, 43, 2))),
    Branches((9, 10), ((50, 2), (51, 52, 53))),
]


def merged(policy: Policy, name: str) -> Any:
    """The untouched model in float64, with the adapter's product added to its weights."""
    model = random_llama(32, 2, 4, 2, 512, 0).double()
    with torch.no_grad():
        for path, layer in lora.layers(policy.model):
            if name in layer.deltas:
                delta = layer.delta(name)
                model.get_submodule(path).weight += delta.scale * (delta.B.double() @ delta.A.double())
    return model


@torch.no_grad()
def said(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    logp = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_the_loss_is_the_papers_in_float64(policy: Policy, genarm_values: dict[str, Any]) -> None:
    deltas = {}
    for seed, name in enumerate(("warmth", "grade")):
        policy.add_adapter(name, LoRAConfig(4, 8.0, 0.0, ("q_proj", "down_proj")))
        for parameter in lora.parameters(policy.model, name):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
        deltas[name] = ((name, 1.0),)
    rows = {"warmth": ROWS, "grade": ROWS[:1]}
    reference = GenARM(**genarm_values).reference(policy, rows)
    loss, figures = Preference(policy, rows, reference, deltas, 0.3)({"warmth": [0, 1], "grade": [0]})
    expected = {}
    for name, some in rows.items():
        model = merged(policy, name)
        apart = [said(model, row.prompt, row.answers[0]) - said(model, row.prompt, row.answers[1]) for row in some]
        expected[name] = sum(math.log1p(math.exp(-0.3 * m)) for m in apart) / len(some)
        assert float(figures[f"{name}/margin"]) == pytest.approx(0.3 * sum(apart) / len(some), abs=1e-4)
    assert float(loss.detach()) == pytest.approx(sum(expected.values()), abs=1e-4)
    assert abs(expected["warmth"] - math.log(2)) > 0.05, "no reference is subtracted"


def test_it_learns_each_dimension_from_its_own_pairs_and_is_no_feature_of_pad(
    make_policy: Make, pairs: list[Pair], genarm_values: dict[str, Any], given: Make, render: Any, make_fitting: Make
) -> None:
    policy, other = make_policy(), make_policy()
    values = {**genarm_values, "steps": 15}
    GenARM(**values).fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.features == {"warmth": (("arm-warmth", 1.0),), "grade": (("arm-grade", 1.0),)}
    assert policy.spec.aligned == ()
    for dimension in ("warmth", "grade"):
        some = contrasting(pairs, [p.request.messages for p in pairs], dimension, 0.2, 8, "genarm")
        rows = encode(policy, some, render, Limits(200, 100))
        before, after = (references(policy, {"g": rows}, d)["g"] for d in ((), policy.spec.features[dimension]))
        assert float(margins(after, before).mean()) > 1
    Pad(**values).fit(other, given(pairs), render, make_fitting())
    one, two = (lora.parameters(p.model, "arm-warmth") for p in (policy, other))
    assert max(float((a - b).detach().abs().max()) for a, b in zip(one, two, strict=True)) > 1e-3


def test_a_finished_stage_is_loaded_and_its_messages_name_it(
    make_policy: Make,
    pairs: list[Pair],
    genarm_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = make_policy(), make_policy()
    figures = GenARM(**genarm_values).fit(first, given(pairs), render, make_fitting())
    monkeypatch.setattr(Preference, "__call__", None)
    assert GenARM(**genarm_values).fit(second, given(pairs), render, make_fitting()) == figures
    one, two = (lora.parameters(p.model, "arm-grade") for p in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(UserError, match=r"in 'warmth': lower alignment\.genarm\.min_gap"):
        GenARM(**{**genarm_values, "min_gap": 9.0}).fit(make_policy(), given(pairs), render, make_fitting())
