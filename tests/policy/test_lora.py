"""The row-weighted LoRA layer against PEFT and against merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from personalign.contracts import UserError
from personalign.plans import Deltas
from personalign.policy import lora
from personalign.policy.lora import LoRAConfig, Routing
from personalign.policy.peft_files import load_adapter, save_adapter
from personalign.policy.policy import Policy
from personalign.policy.tiny import random_llama

CONFIG = LoRAConfig(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj"))
IDS = torch.arange(3, 35).view(4, 8)


def filled(policy: Policy, name: str, seed: int, config: LoRAConfig = CONFIG) -> None:
    """An adapter with random B, so that it changes something."""
    policy.add_adapter(name, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.parameters(policy.model, name):
            parameter.normal_(0, 0.1)


def logits(policy: Policy) -> torch.Tensor:
    return policy.logits(policy.hidden(input_ids=IDS, use_cache=False))


def peft_model(folder: Path, trainable: bool = False) -> PeftModel:
    return PeftModel.from_pretrained(random_llama(32, 2, 4, 2, 512, 0), str(folder), is_trainable=trainable)


def test_a_saved_adapter_means_the_same_to_peft(tiny: Policy, tmp_path: Path) -> None:
    filled(tiny, "a", 1)
    save_adapter(tiny, "a", tmp_path / "a")
    with torch.no_grad(), tiny.using((("a", 1.0),)):
        found = logits(tiny)
        expected = peft_model(tmp_path / "a")(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert (found - logits(tiny)).abs().max() > 0.01


def test_mixed_rows_equal_peft_row_by_row(tiny: Policy, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        filled(tiny, name, seed)
        save_adapter(tiny, name, tmp_path / name)
    rows: list[Deltas] = [(("a", 1.0),), (), (("b", 1.0),), (("b", 1.0),)]
    expected = torch.empty(4, 8, 259)
    with torch.no_grad():
        expected[0] = peft_model(tmp_path / "a")(input_ids=IDS[:1]).logits[0]
        expected[1] = random_llama(32, 2, 4, 2, 512, 0)(input_ids=IDS[1:2]).logits[0]
        expected[2:] = peft_model(tmp_path / "b")(input_ids=IDS[2:]).logits
    tiny.routing.by_row(rows)
    with torch.no_grad():
        torch.testing.assert_close(logits(tiny), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(tiny).detach(), expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_pefts(tiny: Policy, tmp_path: Path) -> None:
    filled(tiny, "a", 1)
    save_adapter(tiny, "a", tmp_path / "a")
    weight = torch.randn(4, 8, 259, generator=torch.Generator().manual_seed(0))
    with tiny.using((("a", 1.0),)):
        (logits(tiny) * weight).sum().backward()
    theirs = peft_model(tmp_path / "a", trainable=True)
    (theirs(input_ids=IDS).logits * weight).sum().backward()
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert len(expected) == 2 * 2 * 3
    for path, layer in lora.layers(tiny.model):
        for side in "AB":
            theirs_name = f"base_model.model.{path}.lora_{side}.default.weight"
            ours = getattr(layer.delta("a"), side).grad
            torch.testing.assert_close(ours, expected[theirs_name], atol=1e-4, rtol=1e-4)


def test_a_row_trains_only_its_own_adapter_and_as_it_would_alone(tiny: Policy) -> None:
    filled(tiny, "a", 1)
    filled(tiny, "b", 2)

    def gradients(name: str) -> list[torch.Tensor]:
        found = [p.grad.clone() for p in lora.parameters(tiny.model, name) if p.grad is not None]
        tiny.model.zero_grad()
        return found

    tiny.routing.by_row([(("a", 1.0),), (), (), (("b", 2.0),)])
    logits(tiny).pow(2).sum().backward()
    mixed = [p.grad.clone() for n in "ab" for p in lora.parameters(tiny.model, n) if p.grad is not None]
    tiny.model.zero_grad()
    alone = []
    for row, name, coefficient in ((0, "a", 1.0), (3, "b", 2.0)):
        with tiny.using(((name, coefficient),)):
            hidden = tiny.hidden(input_ids=IDS[row : row + 1], use_cache=False)
            tiny.logits(hidden).pow(2).sum().backward()
        alone += gradients(name)
    assert len(mixed) == len(alone) == 24
    for one, other in zip(mixed, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_a_soup_equals_merged_weights(tiny: Policy) -> None:
    for seed, name in enumerate(("a", "b")):
        filled(tiny, name, seed)
    merged = random_llama(32, 2, 4, 2, 512, 0)
    with torch.no_grad():
        for path, layer in lora.layers(tiny.model):
            for name, coefficient in (("a", 0.3), ("b", -0.6)):
                delta = layer.delta(name)
                merged.get_submodule(path).weight += coefficient * delta.scale * delta.B @ delta.A
        expected = merged(input_ids=IDS).logits
        with tiny.using((("a", 0.3), ("b", -0.6))):
            torch.testing.assert_close(logits(tiny), expected, atol=2e-5, rtol=1e-5)


def test_files_round_trip(tiny: Policy, tmp_path: Path) -> None:
    filled(tiny, "a", 1)
    save_adapter(tiny, "a", tmp_path / "a")
    load_adapter(tiny, "again", tmp_path / "a")
    assert tiny.configs["again"] == tiny.configs["a"]
    pairs = zip(lora.parameters(tiny.model, "a"), lora.parameters(tiny.model, "again"), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert tiny.spec.adapters == ("a", "again")


def test_files_that_do_not_fit_are_refused(tiny: Policy, tmp_path: Path) -> None:
    filled(tiny, "a", 1)
    save_adapter(tiny, "a", tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(dict(list(tensors.items())[1:]), weights)
    with pytest.raises(UserError, match="1 tensors"):
        load_adapter(tiny, "less", tmp_path / "a")
    assert "less" not in tiny.configs
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(UserError, match="only LoRA"):
        load_adapter(tiny, "dora", tmp_path / "a")
    with pytest.raises(UserError, match="no PEFT adapter"):
        load_adapter(tiny, "none", tmp_path / "nowhere")


def test_an_adapter_used_in_inference_mode_can_still_be_trained_through(tiny: Policy) -> None:
    filled(tiny, "frozen", 1)
    tiny.model.requires_grad_(False)
    deltas: Deltas = (("frozen", 1.0), ("new", 1.0))
    with torch.inference_mode(), tiny.using((("frozen", 1.0),)):
        logits(tiny)
    fresh = tiny.add_adapter("new", CONFIG)
    with tiny.using(deltas):
        logits(tiny).sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in fresh)


def test_dropout_is_off_unless_a_stage_trains(tiny: Policy) -> None:
    filled(tiny, "a", 1, LoRAConfig(4, 8.0, 0.9, CONFIG.targets))
    with torch.no_grad(), tiny.using((("a", 1.0),)):
        assert torch.equal(logits(tiny), logits(tiny))


def test_dropout_falls_on_what_learns_alone(tiny: Policy) -> None:
    """An adapter that is learned on top of a frozen one reads a dropped input, the frozen one does not."""
    config = LoRAConfig(4, 8.0, 0.5, ("q_proj", "v_proj"))
    filled(tiny, "shared", 0, config)
    tiny.add_adapter("own", config)
    for _, layer in lora.layers(tiny.model):
        if "own" in layer.deltas:
            layer.deltas["own"].train()
    both: Deltas = (("shared", 1.0), ("own", 1.0))
    with tiny.using((("shared", 1.0),)):
        alone = logits(tiny)
    with tiny.using(both):
        torch.testing.assert_close(logits(tiny), alone)
        for parameter in lora.parameters(tiny.model, "own"):
            torch.nn.init.normal_(parameter, std=0.1)
        assert float((logits(tiny) - logits(tiny)).abs().max()) > 0.01


def test_gates_open_each_rows_own_adapters() -> None:
    routing = Routing([(1, 3, (("a", 1.0), ("c", -0.5))), (4, None, (("b", 2.0), ("b", 1.0), ("gone", 1.0)))])
    found = routing.gates({"a": 1, "b": 2, "c": 1}, 5)[:, 0]
    assert found.tolist() == [[0] * 4, [1, 0, 0, -0.5], [1, 0, 0, -0.5], [0] * 4, [0, 3, 3, 0]]
    routing.by_row([(("a", 1.0),)] * 3)
    assert routing.slices == [(0, None, (("a", 1.0),))]
    routing.by_row([(), ()])
    assert routing.slices == []


def test_training_mixes_as_decoding_does(tiny: Policy) -> None:
    for seed, name in enumerate(("a", "b")):
        filled(tiny, name, seed)
    filled(tiny, "c", 2, LoRAConfig(2, 8.0, 0.0, ("q_proj", "up_proj")))
    mixtures: list[Deltas] = [(("a", 0.3), ("b", -0.6)), (("c", 1.0), ("a", 1.0)), (), (("c", -1.0),)]
    for rows in (mixtures, [mixtures[0]] * 4, [mixtures[1]] * 4, [()] * 4):
        tiny.routing.by_row(rows)
        trained = logits(tiny)
        with torch.no_grad():
            torch.testing.assert_close(trained.detach(), logits(tiny), atol=2e-5, rtol=1e-5)


def test_an_adapter_in_some_layers_means_the_same_to_peft(tiny: Policy, tmp_path: Path) -> None:
    filled(tiny, "a", 1, LoRAConfig(4, 8.0, 0.0, CONFIG.targets, (1,)))
    assert len(lora.parameters(tiny.model, "a")) == 2 * 3
    save_adapter(tiny, "a", tmp_path / "a")
    load_adapter(tiny, "again", tmp_path / "a")
    assert tiny.configs["again"].layers == (1,)
    with torch.no_grad():
        expected = peft_model(tmp_path / "a")(input_ids=IDS).logits
        for name in ("a", "again"):
            with tiny.using(((name, 1.0),)):
                torch.testing.assert_close(logits(tiny), expected, atol=1e-5, rtol=1e-5)
