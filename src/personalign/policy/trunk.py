"""Rows that read the same tokens are one row through the layers below their adapters and steering vectors.

A base and its adapted guides differ only from the first adapted layer on. With adapters in the upper half, a plan of
a base and K guides that read one prompt costs half of K + 1 rows, and half of one, for the lower half of the keys
and values too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from personalign.plans import Deltas
from personalign.policy.policy import Policy
from personalign.policy.steering import decoder_layers

# The arguments of a layer, as a forward hook hands them over.
_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(slots=True)
class Trunk:
    """The lowest `depth` layers see only the rows `lead` [trunk rows]; above, row i goes on from trunk row `of`[i]."""

    depth: int
    lead: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    of: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    # What the layers of one forward are told alike, and the trunk's rows of it.
    _told: dict[str, tuple[object, Any]] = field(default_factory=dict)

    def arrange(self, keys: Sequence[Hashable], device: torch.device) -> None:
        """Rows with an equal key read the same tokens."""
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self.of = torch.tensor([numbers[key] for key in keys], device=device)
        self.lead = torch.tensor([keys.index(key) for key in numbers], device=device)
        self._told = {}

    def narrowed(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """A layer's keyword arguments for the trunk's rows alone."""
        return {name: self._narrow(name, value) for name, value in told.items()}

    def _narrow(self, name: str, value: Any) -> Any:
        known = self._told.get(name)
        if known is None or known[0] is not value:
            self._told[name] = known = (value, self._taken(value))
        return known[1]

    def _taken(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._taken(one) for one in value)
        by_row = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(self.of)
        return value[self.lead] if by_row else value

    @contextmanager
    def grown(self, policy: Policy, alike: bool = False) -> Iterator[None]:
        """Forwards of `policy` go through this trunk; `alike` where no layer is told anything by row but its states."""
        layers = list(enumerate(decoder_layers(policy.model)[: self.depth + 1] if self.depth else []))
        hooks = [
            layer.register_forward_pre_hook(_Gate(self, i), with_kwargs=True)
            for i, layer in (layers[:1] + layers[-1:] if alike else layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True, slots=True)
class _Gate:
    """What happens before layer `number`: the first narrows the rows, the one behind the trunk spreads them."""

    trunk: Trunk
    number: int

    def __call__(
        self, layer: Any, args: tuple[Any, ...], told: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        trunk = self.trunk
        if self.number == trunk.depth:
            return (args[0][trunk.of], *args[1:]), told
        states = args[0][trunk.lead] if self.number == 0 else args[0]
        return (states, *args[1:]), trunk.narrowed(told)


def trunk_of(policy: Policy, rows: Sequence[tuple[Hashable, Deltas]]) -> Trunk:
    """The trunk of rows (what is read, deltas): as deep as the first adapted or steered layer, none where no two rows
    agree."""
    shared = len({key for key, _ in rows}) < len(rows)
    names = {name for _, deltas in rows for name, _ in deltas}
    depths = [policy.lowest_layer(name) for name in names]
    return Trunk(min([len(decoder_layers(policy.model)), *depths]) if shared and names else 0)
