"""Steering vectors: what is added to the residual stream behind one layer, for each row with its own coefficients.

They are named in a stream's deltas as adapters are, and share their routing: y = x + sum_v c_v v at every token, for
every slice of rows with its own coefficients c.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from personalign.contracts import UserError
from personalign.policy.lora import Routing


class SteeringVector(nn.Module):
    """One vector [width] behind layer `layer`, counted from 0; a float32 master, zero at first."""

    def __init__(self, layer: int, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.vector = nn.Parameter(torch.zeros(width))

    def described(self) -> dict[str, str]:
        """What a file says of it beside its tensor: where it belongs."""
        return {"layer": str(self.layer)}

    def forward(self, coefficients: Tensor) -> Tensor:
        """coefficients [rows, 1, 1] -> [rows, 1, width]."""
        return coefficients * self.vector


class Steering(nn.Module):
    """The vectors behind one layer by name, mixed per slice of rows as the shared routing says."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self.deltas = nn.ModuleDict()
        self.routing = routing

    def forward(self, states: Tensor) -> Tensor:
        """states [rows, time, width] -> [rows, time, width]."""
        names = [name for name in self.routing.names() if name in self.deltas]
        if not names:
            return states
        table = self.routing.weights(dict.fromkeys(names, 1), len(states), torch.float32, states.device)
        added: Tensor = self.deltas[names[0]](table[..., :1])
        for i, name in enumerate(names[1:], start=1):
            added = added + self.deltas[name](table[..., i : i + 1])
        return states + added.to(states.dtype)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder's layers where they are one list in their order; empty for other models."""
    found = getattr(model.get_decoder(), "layers", None)
    return list(found) if isinstance(found, nn.ModuleList) else []


def add(model: Any, name: str, layer: int, width: int, routing: Routing) -> SteeringVector:
    """A fresh vector `name` behind a layer. Raises UserError where the model has no such layer."""
    layers = decoder_layers(model)
    if not 0 <= layer < len(layers):
        raise UserError(f"there is no layer {layer} to steer behind: {len(layers)} of the model can be told apart")
    place = layers[layer]
    if not hasattr(place, "steering"):
        place.steering = Steering(routing)
        place.register_forward_hook(_steered)
    vector = SteeringVector(layer, width).to(next(place.parameters()).device)
    cast(Steering, place.steering).deltas[name] = vector
    routing.adapted += 1
    return vector


def drop(model: Any, name: str, layer: int) -> None:
    """Take a vector away; its layer's hook stays and costs nothing without a vector."""
    steering = cast(Steering, decoder_layers(model)[layer].steering)
    del steering.deltas[name]
    steering.routing.adapted += 1


def _steered(layer: Any, args: Any, output: Any) -> Any:
    """A layer's output with the vectors added: states, or a tuple that they are the first of."""
    if isinstance(output, tuple):
        return (layer.steering(output[0]), *output[1:])
    return layer.steering(output)


@contextmanager
def residuals(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """What a layer gives out, of every forward within: [rows, time, width], its vectors included."""
    seen: list[Tensor] = []

    def note(module: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_layers(model)[layer].register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
