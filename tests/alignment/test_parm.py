"""PARM: what a pair says under weights, the loss of a row, what the bilinear form comes to, and the stage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from personalign.alignment.batches import Limits, encode
from personalign.alignment.conditioned import Aim
from personalign.alignment.losses import margins
from personalign.alignment.parm import PARM, Votes
from personalign.alignment.preference import references
from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama
from personalign.types import Pair

Make = Callable[..., Any]
DIMENSIONS = ("warmth", "grade")
TARGETS = ("q_proj", "down_proj")


def test_the_weight_that_speaks_for_an_answer_chooses_it(pairs: list[Pair], parm_values: dict[str, Any]) -> None:
    stage = PARM(**parm_values)
    pair = replace(pairs[0], labels={"warmth": 1.0, "grade": -1.0})
    assert stage.aim(pair, DIMENSIONS, (0.7, 0.3)) == Aim(pair, (0.7, 0.3), 0.7, (0.0, 0.3))
    assert stage.aim(pair, DIMENSIONS, (0.2, 0.8)) == Aim(pair.swapped(), (0.2, 0.8), 0.8, (0.2, 0.0))
    assert stage.aim(pair, DIMENSIONS, (0.2, -0.8)) == Aim(pair, (0.2, -0.8), 1.0, (0.0, 0.0))
    close = replace(pair, labels={"warmth": 0.1, "grade": -1.0})
    assert stage.aim(close, DIMENSIONS, (0.7, 0.3)) == Aim(close.swapped(), (0.7, 0.3), 0.3, (0.0, 0.0))
    assert stage.aim(replace(pair, labels={"warmth": 0.1}), DIMENSIONS, (0.7, 0.3)) is None


def filled(policy: Policy, name: str, seed: int, rank: int = 4) -> None:
    policy.add_adapter(name, LoRAConfig(rank, 2.0 * rank, 0.0, TARGETS))
    for parameter in lora.parameters(policy.model, name):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))


def test_a_rows_loss_is_the_weighed_sum_of_the_dimensions_losses(
    policy: Policy, pairs: list[Pair], parm_values: dict[str, Any], render: Any
) -> None:
    for seed, name in enumerate(DIMENSIONS):
        filled(policy, name, seed)
    stage, drawn = PARM(**{**parm_values, "min_gap": 0.0}), [(0.7, 0.3), (-0.2, 0.8), (0.5, -0.5), (-0.9, -0.1)]
    aims, expected = [], []
    for pair, weights in zip(pairs, drawn, strict=False):
        aim = stage.aim(pair, DIMENSIONS, weights)
        assert aim is not None
        aims.append(aim)
        (row,) = encode(policy, [pair], render, Limits(200, 100))
        with policy.using(tuple(zip(DIMENSIONS, weights, strict=True))), torch.no_grad():
            first, second = (float(one.double().sum()) for one in answer_logprobs(policy, [row]))
        signs = [math.copysign(1.0, w * pair.labels[d]) for d, w in zip(DIMENSIONS, weights, strict=True)]
        losses = [math.log1p(math.exp(-0.1 * sign * (first - second))) for sign in signs]
        expected.append(sum(abs(w) * loss for w, loss in zip(weights, losses, strict=True)))
    rows = encode(policy, [aim.pair for aim in aims], render, Limits(200, 100))
    mixtures = [tuple(zip(DIMENSIONS, aim.weights, strict=True)) for aim in aims]
    _, others = stage.margins(policy, rows, aims, DIMENSIONS)
    own = torch.tensor([aim.own for aim in aims])
    objective = Votes(policy, "g", rows, stage.reference(policy, rows), mixtures, own, others(), 0.1)
    assert float(objective({"g": [0, 1, 2, 3]})[0]) == pytest.approx(sum(expected) / 4, abs=1e-4)
    for i, one in enumerate(expected):
        assert float(objective({"g": [i]})[0]) == pytest.approx(one, abs=1e-4)


def test_the_published_bilinear_form_is_a_mixture_of_deltas(policy: Policy) -> None:
    """W + s (B1 W1 A1 + B2 (sum_k w_k W2_k) A2), as the released code has it, on the simplex."""
    first, second, scale, weights = 2, 3, 1.5, (0.35, 0.65)
    draw = torch.Generator().manual_seed(0)
    model = random_llama(32, 2, 4, 2, 512, 0)
    for name in DIMENSIONS:
        policy.add_adapter(name, LoRAConfig(first + second, scale * (first + second), 0.0, TARGETS))
    with torch.no_grad():
        for path, layer in lora.layers(policy.model):
            if "warmth" not in layer.deltas:
                continue
            size = layer.base.out_features, layer.base.in_features
            b, a = torch.randn(size[0], 5, generator=draw) * 0.2, torch.randn(5, size[1], generator=draw) * 0.2
            one, two = torch.randn(2, 2, generator=draw), torch.randn(2, 9, generator=draw)
            mixing = torch.block_diag(one, (torch.tensor(weights) @ two).view(3, 3))
            model.get_submodule(path).weight += scale * b @ mixing @ a
            for k, name in enumerate(DIMENSIONS):
                layer.delta(name).A.copy_(a)
                layer.delta(name).B.copy_(b @ torch.block_diag(one, two[k].view(3, 3)))
        ids = torch.arange(3, 19).view(2, 8)
        with policy.using(tuple(zip(DIMENSIONS, weights, strict=True))):
            found = policy.logits(policy.hidden(input_ids=ids, use_cache=False))
        expected = model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert float((expected - random_llama(32, 2, 4, 2, 512, 0)(input_ids=ids).logits).abs().max()) > 0.1


def test_a_stage_steers_both_ways_and_is_loaded_when_done(
    make_policy: Make,
    pairs: list[Pair],
    parm_values: dict[str, Any],
    given: Make,
    render: Any,
    make_fitting: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, again = make_policy(), make_policy()
    stage = PARM(**{**parm_values, "steps": 25, "pairs": None})
    figures = stage.fit(policy, given(pairs), render, make_fitting())
    assert policy.spec.features == {d: ((f"parm-{d}", 1.0),) for d in DIMENSIONS} and policy.spec.aligned == ()
    rows: list[Branches] = encode(policy, pairs, render, Limits(200, 100))
    base = references(policy, {"g": rows}, ())["g"]
    for dimension, sign in itertools.product(DIMENSIONS, (1.0, -1.0)):
        ours = references(policy, {"g": rows}, ((f"parm-{dimension}", sign),))["g"]
        wanted = sign * torch.tensor([pair.labels[dimension] for pair in pairs])
        assert int((wanted * margins(ours, base) > 0).sum()) >= 9, (dimension, sign)
    monkeypatch.setattr(Votes, "_loss", None)
    assert stage.fit(again, given(pairs), render, make_fitting()) == figures and again.spec == policy.spec
    with pytest.raises(UserError, match=r"differs enough in warmth, grade: lower alignment\.parm\.min_gap"):
        PARM(**{**parm_values, "min_gap": 9.0}).fit(make_policy(), given(pairs), render, make_fitting())
