"""Joined linear layers in bf16 against the single ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personalign.plans import Deltas
from personalign.policy import joint, lora
from personalign.policy.joint import Joint, Packed
from personalign.policy.loading import Tiny
from personalign.policy.lora import LoRAConfig, LoRALinear
from personalign.policy.policy import Policy

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MIXTURES: list[list[Deltas]] = [
    [(), (), (), ()],
    [(("a", 1.0),)] * 4,
    [(), (("a", 1.0),), (("b", 1.0),), (("a", 0.5), ("b", -2.0))],
    [(), (("a", 1.0),)],
]


@pytest.fixture
def policy(tmp_path: Path) -> Iterator[Policy]:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not compute in bf16")
    made = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0).build(tmp_path, "bf16")
    for name, targets in (("a", TARGETS), ("b", TARGETS[:4])):
        for parameter in made.add_adapter(name, LoRAConfig(4, 8.0, 0.0, targets)):
            torch.nn.init.normal_(parameter, std=0.3)
    yield made


def apart(layer: LoRALinear, x: Tensor) -> Tensor:
    """What the layer makes of x without its joint."""
    layer.joint, kept = None, layer.joint
    with torch.no_grad():
        y: Tensor = layer(x)
    layer.joint = kept
    return y


@pytest.mark.parametrize("time", [1, 3, 40], ids=["newest", "few", "many"])
@pytest.mark.parametrize("rows", MIXTURES)
def test_every_layer_gives_what_it_gives_alone(policy: Policy, rows: list[Deltas], time: int) -> None:
    policy.routing.by_row(rows)
    found = list(lora.layers(policy.model))
    assert len(found) == 14
    for _, layer in found:
        x = torch.randn(len(rows), time, layer.base.in_features).bfloat16()
        with torch.no_grad():
            y = layer(x)
        torch.testing.assert_close(y.float(), apart(layer, x).float(), atol=0.05, rtol=0.03)


def test_layers_with_one_input_are_computed_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = Joint._forward
    monkeypatch.setattr(Joint, "_forward", lambda self, x: calls.append(len(self.members)) or forward(self, x))
    with torch.inference_mode():
        policy.hidden(input_ids=torch.tensor([[5, 6, 7]]))
    assert calls == [3, 1, 2, 1] * 2


def test_a_changed_or_another_adapter_of_the_name_is_seen(policy: Policy) -> None:
    policy.routing.all_rows((("a", 1.0),))
    (_, layer), *_ = lora.layers(policy.model)
    x = torch.randn(2, 1, 32).bfloat16()
    with torch.no_grad():
        first = layer(x)
        layer.delta("a").B.mul_(-1.0)
        second = layer(x.clone())
    assert not torch.allclose(first, second)
    policy.drop_adapter("a")
    policy.add_adapter("a", LoRAConfig(2, 4.0, 0.0, TARGETS))
    with torch.no_grad():
        third = layer(x.clone())
        policy.routing.slices = []
        assert torch.equal(third, layer(x.clone()))


def test_weights_are_packed_anew_for_more_adapters_not_for_fewer(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, pack = [], joint.pack
    monkeypatch.setattr(joint, "pack", lambda weight: packed.append(weight.shape) or pack(weight))
    (_, layer), *_ = lora.layers(policy.model)
    x = torch.randn(4, 1, 32).bfloat16()
    seen = []
    for rows in ([()] * 4, MIXTURES[2], MIXTURES[1], [()] * 4, MIXTURES[2]):
        policy.routing.by_row(rows)
        with torch.no_grad():
            y = layer(x.clone())
            _ = [member(x) for member in layer.joint.members[1:]] if layer.joint else []
        torch.testing.assert_close(y.float(), apart(layer, x).float(), atol=0.05, rtol=0.03)
        seen.append(len(packed))
    assert seen == [1, 3, 3, 3, 3], "weights once, then weights and B with every adapter, and no more"


def test_changed_base_weights_are_packed_again(policy: Policy) -> None:
    (_, layer), *_ = lora.layers(policy.model)
    x = torch.randn(2, 1, 32).bfloat16()
    with torch.no_grad():
        layer(x)
        layer.base.weight.mul_(2.0)
        torch.testing.assert_close(layer(x.clone()).float(), apart(layer, x).float(), atol=0.05, rtol=0.03)


def test_gradients_take_the_plain_way(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "__call__", lambda self, x, stack=None: pytest.fail("packed under a gradient"))
    policy.routing.all_rows((("a", 1.0),))
    states = policy.hidden(input_ids=torch.tensor([[5, 6, 7]]))
    states.float().sum().backward()
    assert all(p.grad is not None for p in lora.parameters(policy.model, "a"))


def test_the_head_is_packed_too(policy: Policy) -> None:
    hidden = torch.randn(3, 32).bfloat16()
    assert policy.packed_head is not None
    with torch.no_grad():
        expected = policy.model.get_output_embeddings()(hidden).float()
        torch.testing.assert_close(policy.logits(hidden), expected, atol=0.05, rtol=0.03)


def test_other_types_and_large_models_stay_as_they_are(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.packed_head is None and not list(lora.layers(tiny.model))
    monkeypatch.setattr(joint, "PACKED_BYTES", 1000)
    large = Tiny(hidden=32, layers=2, heads=4, kv_heads=2, context=512, seed=0).build(tmp_path, "bf16")
    assert large.packed_head is None and not list(lora.layers(large.model))


def test_biases_that_only_some_layers_have() -> None:
    layers = [torch.nn.Linear(8, 4, bias=bias, dtype=torch.bfloat16) for bias in (True, False)]
    x = torch.randn(3, 8).bfloat16()
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in layers], dim=-1)
        torch.testing.assert_close(Packed(layers)(x).float(), expected.float(), atol=0.05, rtol=0.03)


@torch.inference_mode()
def test_the_head_reads_a_weighted_sum_of_states_as_the_sum_of_what_it_reads(policy: Policy) -> None:
    model = policy.model.float()
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    states, weights = torch.randn(3, head.in_features), torch.tensor([2.5, -1.0, 0.25])
    summed = policy.logits((weights @ states)[None], weights.sum()[None])
    torch.testing.assert_close(summed[0], weights @ policy.logits(states))
