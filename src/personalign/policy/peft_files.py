"""Adapters in and out as PEFT folders: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.policy import Policy
from personalign.runtime.files import write_atomic

PREFIX = "base_model.model."


def _key(path: str, side: str) -> str:
    return f"{PREFIX}{path}.lora_{side}.weight"


def state(policy: Policy, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names."""
    found: dict[str, Tensor] = {}
    for path, layer in lora.layers(policy.model):
        if name in layer.deltas:
            delta = layer.delta(name)
            found[_key(path, "A")] = delta.A.detach().cpu().contiguous()
            found[_key(path, "B")] = delta.B.detach().cpu().contiguous()
    return found


def save_adapter(policy: Policy, name: str, folder: Path) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` reads; the weights file last and whole."""
    config = policy.configs[name]
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": policy.label,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "layers_to_transform": list(config.layers) if config.layers is not None else None,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "adapter_config.json", json.dumps(described, indent=2))
    write_atomic(folder / "adapter_model.safetensors", save(state(policy, name)))


def load_adapter(policy: Policy, name: str, folder: Path) -> None:
    """Read a PEFT LoRA folder under `name`. Raises UserError where a tensor is missing, unknown or misshapen."""
    config, tensors = _read(folder)
    policy.add_adapter(name, config)
    expected = state(policy, name)
    problems = sorted(expected.keys() ^ tensors.keys())
    problems += [k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape]
    if problems:
        policy.drop_adapter(name)
        raise UserError(f"adapter {folder} does not fit {policy.label}: {len(problems)} tensors, first {problems[0]}")
    with torch.no_grad():
        for path, layer in lora.layers(policy.model):
            if name in layer.deltas:
                layer.delta(name).A.copy_(tensors[_key(path, "A")])
                layer.delta(name).B.copy_(tensors[_key(path, "B")])


def _read(folder: Path) -> tuple[lora.LoRAConfig, dict[str, Tensor]]:
    try:
        raw = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise UserError(f"no PEFT adapter can be read from {folder}: {error}") from error
    if raw.get("peft_type") != "LORA" or raw.get("use_dora") or raw.get("use_rslora"):
        raise UserError(f"adapter {folder} is no plain LoRA ({raw.get('peft_type')}): only LoRA is supported")
    targets, only = raw["target_modules"], raw.get("layers_to_transform")
    config = lora.LoRAConfig(
        raw["r"],
        raw["lora_alpha"],
        raw["lora_dropout"],
        tuple(targets if isinstance(targets, list) else [targets]),
        tuple(only if isinstance(only, list) else [only]) if only is not None else None,
    )
    return config, tensors
