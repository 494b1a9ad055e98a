"""Whether a policy's weights are still those that something was computed with."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from torch import Tensor, nn

from personalign.policy import lora
from personalign.policy.policy import Policy


class Versions:
    """The state of a policy's weights as something cheap to compare: where each one lies, and how often it was written
    to."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._adapted = -1
        self._base: list[nn.Parameter] = []
        self._layers: list[lora.LoRALinear] = []

    def now(self, names: Iterable[str]) -> tuple[object, ...]:
        """Equal as long as the base, the adapters and vectors of these names, and all heads stay as they are."""
        policy = self.policy
        if self._adapted != policy.routing.adapted:  # to walk through all adapters of many users takes long
            self._base = [p for path, p in policy.model.named_parameters() if ".deltas." not in path]
            self._layers = [layer for _, layer in lora.layers(policy.model)]
            self._adapted = policy.routing.adapted
        named = sorted(names)
        deltas = [layer.delta(name) for name in named for layer in self._layers if name in layer.deltas]
        learned = (p for delta in deltas for p in delta.parameters())
        vectors = (policy.vectors[name].vector for name in named if name in policy.vectors)
        weights = chain(self._base, learned, vectors, policy.heads.parameters())
        return (policy.heads, self._adapted, *map(_version, weights))


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version
