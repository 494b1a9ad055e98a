"""Linear layers that read the same input, as one product, for forwards without gradients on the CPU.

In decoding a forward has few rows: the time goes into reading weights and into calls. So q, k and v (and gate and up)
are computed at once, from weights in the layout that the CPU's kernel wants, and all adapters of all rows in two
further products. The values are those of the single layers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalign.policy.lora import LoRADelta, LoRALinear, Routing, wrap

# An adapter's name, the number of the member that it is on, and its weights there.
Part = tuple[str, int, LoRADelta]
# A of all parts one below the other [R, in]; B as blocks [sum of out, R]; and how much of R is whose.
Stack = tuple[Tensor, Tensor, dict[str, int]]
State = list[tuple[LoRADelta, int]]

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
PACKED_BYTES = 2**31  # packed weights stand beside the plain ones, which training needs: larger models do without


class Packed:
    """Weights [out, in] of layers, one below the other, packed for the CPU's bf16 kernel when first used."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        self._version: tuple[tuple[int, int], ...] = ()
        self._weight = torch.empty(0)
        self._bias: Tensor | None = None

    def usable(self, x: Tensor) -> bool:
        """Whether this is a case for it; a weight that is elsewhere just now (ZeRO-3) has no address."""
        fits = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
        return fits and all(layer.weight.data_ptr() for layer in self.layers)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., sum of out]."""
        version = tuple((layer.weight.data_ptr(), layer.weight._version) for layer in self.layers)
        if version != self._version:
            self._pack()
            self._version = version
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def _pack(self) -> None:
        weight = torch.cat([layer.weight.detach() for layer in self.layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        if any(layer.bias is not None for layer in self.layers):
            none = [layer.weight.new_zeros(layer.out_features) for layer in self.layers]
            self._bias = torch.cat(
                [n if one.bias is None else one.bias for one, n in zip(self.layers, none, strict=True)]
            )


class Joint:
    """Adapted layers with one input. The first one that is asked computes all; the others take theirs."""

    def __init__(self, members: Sequence[LoRALinear], routing: Routing) -> None:
        self.members, self.routing = members, routing
        self.packed = Packed([member.base for member in members])
        self.sizes = [member.base.out_features for member in members]
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        self._stack: Stack | None = None
        self._state: State = []
        self._parts: list[Part] = []
        self._parts_for: tuple[object, int] = (None, 0)

    def usable(self, x: Tensor) -> bool:
        return self.packed.usable(x)

    def output(self, member: LoRALinear, x: Tensor) -> Tensor:
        """What `member` makes of x [rows, time, in]."""
        if self._input is not x or id(member) not in self._outputs:
            self._input = x
            parts = torch.split(self._forward(x), self.sizes, dim=-1)
            self._outputs = dict(zip(map(id, self.members), parts, strict=True))
        found = self._outputs.pop(id(member))
        if not self._outputs:
            self._input = None
        return found

    def _forward(self, x: Tensor) -> Tensor:
        y = self.packed(x)
        if not self.routing.slices:
            return y
        parts = self._used()
        if not parts:
            return y
        down, up, ranks = self._stacked(parts, x.dtype)
        return y.add_(F.linear(self.routing.opened(F.linear(x, down), ranks), up))

    def _used(self) -> list[Part]:
        """The adapters that any row uses here; looked up again when the routing, or what there is, has changed."""
        now = self.routing.slices, self.routing.adapted
        if self._parts_for[0] is not now[0] or self._parts_for[1] != now[1]:
            names = self.routing.names()
            self._parts = [(n, i, m.delta(n)) for n in names for i, m in enumerate(self.members) if n in m.deltas]
            self._parts_for = now
        return self._parts

    def _stacked(self, parts: list[Part], dtype: torch.dtype) -> Stack:
        """The adapters of all members as two matrices, made anew when one of them is another or has changed."""
        state = [(delta, delta.A._version + delta.B._version) for _, _, delta in parts]
        if self._stack is None or not _same(self._state, state) or self._stack[0].dtype != dtype:
            self._stack, self._state = self._make(parts, dtype), state
        return self._stack

    def _make(self, parts: list[Part], dtype: torch.dtype) -> Stack:
        ranks: dict[str, int] = {}
        up = torch.zeros(sum(self.sizes), sum(len(delta.A) for _, _, delta in parts), dtype=dtype)
        for name, member, delta in parts:
            rows = slice(sum(self.sizes[:member]), sum(self.sizes[: member + 1]))
            start = sum(ranks.values())
            up[rows, start : start + len(delta.A)] = delta.weights(dtype)[1]
            ranks[name] = ranks.get(name, 0) + len(delta.A)
        return torch.cat([delta.weights(dtype)[0] for _, _, delta in parts]), up, ranks


def _same(first: State, second: State) -> bool:
    return len(first) == len(second) and all(a is b and x == y for (a, x), (b, y) in zip(first, second, strict=True))


def install(model: Any, routing: Routing) -> Packed | None:
    """Join the linear layers of a model's decoder and pack its head, where the CPU has the kernel for it.

    Returns the packed head; None where everything stays as it is.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    linears = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    if not supported([*linears, head]):
        return None
    for parent in list(decoder.modules()):
        for names in _groups([name for name, child in parent.named_children() if type(child) is nn.Linear]):
            members = [wrap(parent, name, routing) for name in names]
            joint = Joint(members, routing)
            for member in members:
                member.joint = joint
    return Packed([head])


def supported(linears: Sequence[nn.Linear]) -> bool:
    """bf16 weights on a CPU that computes in bf16, and room for a second copy of them."""
    weights = [linear.weight for linear in linears]
    here = all(w.dtype == torch.bfloat16 and w.device.type == "cpu" for w in weights)
    small = sum(w.numel() * w.element_size() for w in weights) <= PACKED_BYTES
    return here and small and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _groups(names: list[str]) -> Iterator[tuple[str, ...]]:
    """The children of one module that share an input, together; every other one alone."""
    for siblings in SIBLINGS:
        if set(siblings) <= set(names):
            names = [name for name in names if name not in siblings]
            yield siblings
    yield from ((name,) for name in names)
