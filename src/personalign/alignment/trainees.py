"""What a stage trains: fresh adapters, a head, or both, and how they are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from personalign.contracts import UserError
from personalign.policy import lora
from personalign.policy.heads import load_head, save_head
from personalign.policy.peft_files import load_adapter, save_adapter
from personalign.policy.policy import Policy
from personalign.runtime.seeds import derive

NAME = re.compile(r"[A-Za-z0-9_-]+")


class Trainee(Protocol):
    """What a lesson trains: made fresh or loaded, then frozen; gone without a trace where training fails."""

    def check(self, policy: Policy) -> None: ...
    def create(self, policy: Policy, seed: int) -> list[list[nn.Parameter]]: ...
    def freeze(self, policy: Policy) -> None: ...
    def discard(self, policy: Policy) -> None: ...
    def save(self, policy: Policy, folder: Path) -> None: ...
    def load(self, policy: Policy, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Adapters:
    """LoRA adapters by name, all of one configuration; kept as PEFT folders.

    They lie in the upper `depth` of the decoder's layers (1.0: in all): what lies below needs no backward pass.
    """

    names: tuple[str, ...]
    config: lora.LoRAConfig
    depth: float

    def create(self, policy: Policy, seed: int) -> list[list[nn.Parameter]]:
        """Fresh ones, each drawn from the seed and its own name; their trainable weights, adapter by adapter."""
        groups = []
        for name in self.names:
            with drawn(seed, "adapter", name):
                groups.append(policy.add_adapter(name, self._placed(policy)))
        _only(policy, [p for group in groups for p in group])
        self._mode(policy, training=True)
        return groups

    def _placed(self, policy: Policy) -> lora.LoRAConfig:
        total = policy.model.config.get_text_config().num_hidden_layers
        adapted = max(1, round(self.depth * total))
        return self.config if adapted == total else replace(self.config, layers=(*range(total - adapted, total),))

    def check(self, policy: Policy) -> None:
        """Raise UserError where a name cannot be one or is taken."""
        _check_names(policy, self.names, "an adapter")

    def _mode(self, policy: Policy, training: bool) -> None:
        for _, layer in lora.layers(policy.model):
            for name in self.names:
                if name in layer.deltas:
                    layer.deltas[name].train(training)

    def freeze(self, policy: Policy) -> None:
        self._mode(policy, training=False)
        _only(policy, [])

    def discard(self, policy: Policy) -> None:
        for name in self.names:
            if name in policy.configs:
                policy.drop_adapter(name)

    def save(self, policy: Policy, folder: Path) -> None:
        for name in self.names:
            save_adapter(policy, name, folder / name)

    def load(self, policy: Policy, folder: Path) -> None:
        for name in self.names:
            with torch.random.fork_rng():
                load_adapter(policy, name, folder / name)
        self.freeze(policy)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Steering vectors by name behind one layer: `height` of the way from the first (0) to the last (1); kept as
    safetensors. Zero at first."""

    names: tuple[str, ...]
    height: float

    def layer(self, policy: Policy) -> int:
        """The layer's number, from 0."""
        layers: int = policy.model.config.get_text_config().num_hidden_layers
        return round(self.height * (layers - 1))

    def create(self, policy: Policy, seed: int) -> list[list[nn.Parameter]]:
        groups = [list(policy.add_vector(name, self.layer(policy)).parameters()) for name in self.names]
        _only(policy, [p for group in groups for p in group])
        return groups

    def check(self, policy: Policy) -> None:
        """Raise UserError where a name cannot be one or is taken."""
        _check_names(policy, self.names, "a steering vector")

    def freeze(self, policy: Policy) -> None:
        _only(policy, [])

    def discard(self, policy: Policy) -> None:
        for name in self.names:
            if name in policy.vectors:
                policy.drop_vector(name)

    def save(self, policy: Policy, folder: Path) -> None:
        for name in self.names:
            save_head(policy.vectors[name], folder / f"{name}.safetensors")

    def load(self, policy: Policy, folder: Path) -> None:
        try:
            for name in self.names:
                load_head(policy.add_vector(name, self.layer(policy)), folder / f"{name}.safetensors")
        except UserError:
            self.discard(policy)
            raise
        self.freeze(policy)


@dataclass(frozen=True, slots=True)
class Head:
    """One head of the policy by name; kept as safetensors."""

    name: str
    module: nn.Module

    def create(self, policy: Policy, seed: int) -> list[list[nn.Parameter]]:
        self._add(policy)
        parameters = list(self.module.parameters())
        _only(policy, parameters)
        return [parameters]

    def check(self, policy: Policy) -> None:
        """Raise UserError where another stage has made such a head."""
        if self.name in policy.heads:
            raise UserError(f"two stages of alignment train a head {self.name!r}: choose one of them")

    def _add(self, policy: Policy) -> None:
        policy.heads[self.name] = self.module.to(policy.device)
        policy.spec = replace(policy.spec, heads=(*policy.spec.heads, self.name))

    def freeze(self, policy: Policy) -> None:
        _only(policy, [])

    def discard(self, policy: Policy) -> None:
        if self.name in policy.heads:
            del policy.heads[self.name]
        policy.spec = replace(policy.spec, heads=tuple(h for h in policy.spec.heads if h != self.name))

    def save(self, policy: Policy, folder: Path) -> None:
        save_head(self.module, folder / f"{self.name}.safetensors")

    def load(self, policy: Policy, folder: Path) -> None:
        self._add(policy)
        load_head(self.module, folder / f"{self.name}.safetensors")
        self.freeze(policy)


@dataclass(frozen=True, slots=True)
class Together:
    """Adapters and heads that learn side by side, each kept as it is alone."""

    members: tuple[Adapters | Head, ...]

    def create(self, policy: Policy, seed: int) -> list[list[nn.Parameter]]:
        groups = [group for member in self.members for group in member.create(policy, seed)]
        _only(policy, [p for group in groups for p in group])
        return groups

    def check(self, policy: Policy) -> None:
        for member in self.members:
            member.check(policy)

    def freeze(self, policy: Policy) -> None:
        for member in self.members:
            member.freeze(policy)

    def discard(self, policy: Policy) -> None:
        for member in self.members:
            member.discard(policy)

    def save(self, policy: Policy, folder: Path) -> None:
        for member in self.members:
            member.save(policy, folder)

    def load(self, policy: Policy, folder: Path) -> None:
        for member in self.members:
            member.load(policy, folder)


def _check_names(policy: Policy, names: Sequence[str], kind: str) -> None:
    """Raise UserError where a name cannot be one of a file, or something that is added to the base has it."""
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name of {kind}: use letters, digits, - and _")
        if name in policy.configs or name in policy.vectors:
            raise UserError(f"two stages of alignment train {kind} {name!r}: give one of them another name")


def _only(policy: Policy, parameters: Sequence[nn.Parameter]) -> None:
    """Let these learn and nothing else."""
    policy.model.requires_grad_(False)
    policy.heads.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


@contextmanager
def drawn(seed: int, *names: str) -> Iterator[None]:
    """Fresh weights are drawn from the seed and these names alone, and torch's random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *names))
        yield
