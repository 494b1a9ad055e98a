"""Row-weighted LoRA: one forward in which each slice of rows adds its own mixture of adapters.

Decoding, soups and training share this layer; PEFT is only the file format (see `peft_files`).
y = W x + sum_a c_a * (alpha_a / r_a) * B_a A_a x, for every row slice with its own coefficients c (LoRA,
arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalign.types import Deltas


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """Rank r, scale alpha, dropout on the input, and the names of the linear layers that are adapted."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


@dataclass(slots=True)
class Routing:
    """Which rows use which adapters now: (start, stop, deltas), rows outside every slice are plain base."""

    slices: list[tuple[int, int | None, Deltas]] = field(default_factory=list)

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

    def regions(self, rows: int) -> list[tuple[int, Deltas]]:
        """The slices as (number of rows, deltas) from the first row to the last, gaps filled with the base."""
        found: list[tuple[int, Deltas]] = []
        end = 0
        for start, stop, deltas in self.slices:
            stop = rows if stop is None else stop
            found += [(start - end, ()), (stop - start, deltas)]
            end = stop
        return [(n, deltas) for n, deltas in [*found, (rows - end, ())] if n]


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

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and scale * B in `dtype`; cached while no gradient is wanted and the masters are unchanged."""
        if torch.is_grad_enabled() and self.A.requires_grad:
            return self.A.to(dtype), (self.B * self.scale).to(dtype)
        version = self.A._version + self.B._version
        if self._cast is None or self._cast[0] != version or not self._usable(self._cast[2], dtype):
            self._cast = (version, self.A.detach().to(dtype), (self.B.detach() * self.scale).to(dtype))
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
        y: Tensor = self.base(x)
        if len(self.routing.slices) > 1 and torch.is_grad_enabled():
            return y + self._tiled(x)
        for start, stop, deltas in self.routing.slices:
            whole = start == 0 and stop is None
            term = self.mixture(x if whole else x[start:stop], deltas)
            if term is None:
                continue
            if whole:
                y = y + term
            else:
                y[start:stop] += term
        return y

    def _tiled(self, x: Tensor) -> Tensor:
        """All rows' deltas; for training, where writing into slices would copy the gradient for each of them."""
        regions = self.routing.regions(len(x))
        parts = x.split_with_sizes([rows for rows, _ in regions])
        terms = [self.mixture(part, deltas) for part, (_, deltas) in zip(parts, regions, strict=True)]
        zeros = x.new_zeros(())
        shapes = [(*part.shape[:-1], self.base.out_features) for part in parts]
        return torch.cat([zeros.expand(s) if t is None else t for t, s in zip(terms, shapes, strict=True)])


def layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every adapted layer with its path in the unadapted model."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module


def adapt(model: nn.Module, name: str, config: LoRAConfig, routing: Routing) -> None:
    """Give every target layer of `model` a fresh delta `name`; B = 0, so that nothing changes yet."""
    for path, module in list(model.named_modules()):
        leaf = path.rsplit(".", 1)[-1]
        if leaf in config.targets and isinstance(module, (nn.Linear, LoRALinear)):
            layer = module if isinstance(module, LoRALinear) else _wrap(model, path, module, routing)
            layer.deltas[name] = LoRADelta(layer.base, config).eval()


def _wrap(model: nn.Module, path: str, linear: nn.Linear, routing: Routing) -> LoRALinear:
    parent, _, leaf = path.rpartition(".")
    layer = LoRALinear(linear, routing)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The trainable parameters of one adapter, in the order of the layers."""
    return [p for _, layer in layers(model) if name in layer.deltas for p in layer.deltas[name].parameters()]


def drop(model: nn.Module, name: str) -> None:
    """Take an adapter away; the wrapped layers stay and cost nothing without a slice."""
    for _, layer in layers(model):
        if name in layer.deltas:
            del layer.deltas[name]
