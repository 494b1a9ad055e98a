"""Row-weighted LoRA: one forward in which each slice of rows adds its own mixture of adapters.

Decoding, soups and training share this layer; PEFT is only the file format (see `peft_files`).
y = W x + sum_a c_a * (alpha_a / r_a) * B_a A_a x, for every row slice with its own coefficients c (LoRA,
arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalign.contracts import UserError
from personalign.plans import Deltas

if TYPE_CHECKING:
    from personalign.policy.joint import Joint


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """Rank r, scale alpha, dropout on the input, and the names of the linear layers that are adapted.

    `layers` are the numbers of the decoder layers in which they are; None is all of them.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    def adapts(self, path: str) -> bool:
        """Whether the linear layer at this path of the model is meant."""
        *above, leaf = path.split(".")
        number = next((int(part) for part in above if part.isdigit()), None)
        return leaf in self.targets and (self.layers is None or number in self.layers)


@dataclass(slots=True)
class Routing:
    """Which rows use which adapters now: (start, stop, deltas), rows outside every slice are plain base."""

    slices: list[tuple[int, int | None, Deltas]] = field(default_factory=list)
    # How often adapters or steering vectors have come or gone.
    adapted: int = 0
    # The gates of `_opened_for`, by ranks, rows, type and place: a forward asks for the same ones in every layer.
    _opened: dict[object, Tensor] = field(default_factory=dict)
    _opened_for: object = None

    def all_rows(self, deltas: Deltas) -> None:
        self.slices = [(0, None, deltas)] if deltas else []

    def by_row(self, rows: Sequence[Deltas]) -> None:
        """Contiguous slices from one delta tuple per row; rows should be sorted so that equal ones touch."""
        if len(set(rows)) == 1:
            return self.all_rows(rows[0])
        self.slices = []
        start = 0
        for stop in range(1, len(rows) + 1):
            if stop == len(rows) or rows[stop] != rows[start]:
                if rows[start]:
                    self.slices.append((start, stop, rows[start]))
                start = stop

    def names(self) -> tuple[str, ...]:
        """The adapters that any row uses."""
        return tuple(dict.fromkeys(name for _, _, deltas in self.slices for name, _ in deltas))

    def opened(self, inner: Tensor, ranks: dict[str, int]) -> Tensor:
        """inner [rows, time, sum of ranks], of which each row keeps its own adapters' part, weighted."""
        whole = len(self.slices) == 1 and self.slices[0][1] is None
        if whole and self.slices[0][2] == tuple((name, 1.0) for name in ranks):
            return inner
        return inner * self.weights(ranks, len(inner), inner.dtype, inner.device)

    def weights(self, ranks: dict[str, int], rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`gates` in a type and a place, made once for as long as the routing stays."""
        if self._opened_for is not self.slices:
            self._opened, self._opened_for = {}, self.slices
        key = (tuple(ranks.items()), rows, dtype, device)
        if key not in self._opened:
            self._opened[key] = self.gates(ranks, rows).to(device, dtype)
        return self._opened[key]

    def gates(self, ranks: dict[str, int], rows: int) -> Tensor:
        """[rows, 1, sum of ranks]: what each row multiplies the stacked inner products of the adapters by."""
        table = torch.zeros(rows, 1, sum(ranks.values()))
        starts = dict(zip(ranks, accumulate(ranks.values(), initial=0), strict=False))
        for start, stop, deltas in self.slices:
            for name, coefficient in deltas:
                if name in ranks:
                    table[start:stop, :, starts[name] : starts[name] + ranks[name]] += coefficient
        return table


class LoRADelta(nn.Module):
    """One adapter on one linear layer. A [r, in] and B [out, r] are float32 masters, used in the input's type."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(config.rank, base.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        self._cast: tuple[int, Tensor, Tensor] | None = None

    @property
    def version(self) -> int:
        """How often the masters were written to."""
        masters = self._parameters  # past nn.Module's attribute look-up: every forward asks in every layer
        return cast(Tensor, masters["A"])._version + cast(Tensor, masters["B"])._version

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and scale * B in `dtype`; cached while no gradient is wanted and the masters are unchanged."""
        if torch.is_grad_enabled() and self.A.requires_grad:
            return self.A.to(dtype), (self.B * self.scale).to(dtype)
        if self._cast is None or self._cast[0] != self.version or not self._usable(self._cast[2], dtype):
            self._cast = (self.version, self.A.detach().to(dtype), (self.B.detach() * self.scale).to(dtype))
        return self._cast[1], self._cast[2]

    def _usable(self, cast: Tensor, dtype: torch.dtype) -> bool:
        """A copy made in inference mode cannot take part in a graph; one from before a move lies elsewhere."""
        here = cast.dtype == dtype and cast.device == self.A.device
        return here and not (cast.is_inference() and torch.is_grad_enabled())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> the delta [..., out], scale included."""
        a, b = self.weights(x.dtype)
        return F.linear(F.linear(self.dropout(x), a), b)


class LoRALinear(nn.Module):
    """A frozen linear layer with named deltas, mixed per slice of rows as the shared routing says."""

    def __init__(self, base: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.deltas = nn.ModuleDict()
        self.routing = routing
        self.joint: Joint | None = None

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def delta(self, name: str) -> LoRADelta:
        return cast(LoRADelta, self.deltas[name])

    def mixture(self, x: Tensor, deltas: Deltas) -> Tensor | None:
        total: Tensor | None = None
        for name, coefficient in deltas:
            if name in self.deltas:
                term = self.delta(name)(x)
                term = term if coefficient == 1.0 else term * coefficient
                total = term if total is None else total + term
        return total

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, time, in] -> [rows, time, out]."""
        if self.joint is not None and self.joint.usable(x):
            return self.joint.output(self, x)
        y: Tensor = self.base(x)
        if torch.is_grad_enabled():
            return self._stacked(y, x)
        for start, stop, deltas in self.routing.slices:
            whole = start == 0 and stop is None
            term = self.mixture(x if whole else x[start:stop], deltas)
            if term is None:
                continue
            if whole:
                y = y + term
            else:
                y[start:stop].add_(term)
        return y

    def _stacked(self, y: Tensor, x: Tensor) -> Tensor:
        """y plus every row's deltas, as one product of all adapters of which a row opens its own.

        For training: slices would copy the whole gradient for each of them. One draw of dropout serves all that learn;
        those that do not are read without.
        """
        names = [name for name in self.routing.names() if name in self.deltas]
        learning = [name for name in names if self.delta(name).training]
        if not learning or self.delta(learning[0]).dropout.p == 0.0:
            return self._plus(y, x, names)
        y = self._plus(y, x, [name for name in names if name not in learning])
        return self._plus(y, self.delta(learning[0]).dropout(x), learning)

    def _plus(self, y: Tensor, x: Tensor, names: Sequence[str]) -> Tensor:
        if not names:
            return y
        down, up, ranks = self._stack(names, x.dtype)
        inner = self.routing.opened(F.linear(x, down), ranks)
        return torch.addmm(y.flatten(0, -2), inner.flatten(0, -2), up.t()).view_as(y)

    def _stack(self, names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, int]]:
        """All A one below the other [R, in], all scale * B side by side [out, R], and how much of R is whose.

        Adapters that learn together are put side by side before they are scaled and cast: twice for all of them.
        """
        deltas = [self.delta(name) for name in names]
        ranks = {name: len(delta.A) for name, delta in zip(names, deltas, strict=True)}
        if len(scales := {delta.scale for delta in deltas}) == 1 and all(delta.A.requires_grad for delta in deltas):
            down, up = torch.cat([delta.A for delta in deltas]), torch.cat([delta.B for delta in deltas], dim=1)
            return down.to(dtype), (up * scales.pop()).to(dtype), ranks
        weights = [delta.weights(dtype) for delta in deltas]
        return torch.cat([a for a, _ in weights]), torch.cat([b for _, b in weights], dim=1), ranks


def layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every adapted layer with its path in the unadapted model."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module


def adapt(model: nn.Module, name: str, config: LoRAConfig, routing: Routing) -> None:
    """Give every target layer of `model` a fresh delta `name`; B = 0, so that nothing changes yet."""
    for path, module in list(model.named_modules()):
        if config.adapts(path) and isinstance(module, (nn.Linear, LoRALinear)):
            layer = module if isinstance(module, LoRALinear) else wrap(model, path, routing)
            layer.deltas[name] = LoRADelta(layer.base, config).eval()
    routing.adapted += 1


def wrap(model: nn.Module, path: str, routing: Routing) -> LoRALinear:
    """Put a layer that can be adapted in the place of the linear one at this path."""
    parent, _, leaf = path.rpartition(".")
    layer = LoRALinear(cast(nn.Linear, model.get_submodule(path)), routing)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The trainable parameters of one adapter, in the order of the layers."""
    return [p for _, layer in layers(model) if name in layer.deltas for p in layer.deltas[name].parameters()]


def merge(
    model: nn.Module, name: str, shares: Deltas, configs: Mapping[str, LoRAConfig], routing: Routing
) -> LoRAConfig:
    """Give `model` a frozen delta `name` whose factors are the weighted sums of others', and return its configuration:
    B A = (sum_k w_k B_k) (sum_k w_k A_k), as released merges of LoRA have it. Raises UserError where these differ in
    more than their weights."""
    found = [configs.get(other) for other, _ in shares]
    config = found[0]
    if config is None or any(other is None or replace(other, dropout=config.dropout) != config for other in found):
        names = ", ".join(other for other, _ in shares)
        raise UserError(
            f"the factors of {names} cannot be averaged: they are not LoRA adapters of one rank, scale and place; "
            "add their products instead (form=delta)"
        )
    # A decoder may be the first to ask: what it makes in inference mode could take part in no graph.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        adapt(model, name, config, routing)
        for _, layer in layers(model):
            if name in layer.deltas:
                mean = layer.delta(name).requires_grad_(False)
                mean.A.copy_(sum((w * layer.delta(other).A for other, w in shares), torch.zeros_like(mean.A)))
                mean.B.copy_(sum((w * layer.delta(other).B for other, w in shares), torch.zeros_like(mean.B)))
    return config


def drop(model: nn.Module, name: str) -> None:
    """Take an adapter away; the wrapped layers stay and cost nothing without a slice."""
    for _, layer in layers(model):
        if name in layer.deltas:
            del layer.deltas[name]
            layer.routing.adapted += 1
