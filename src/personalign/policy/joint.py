"""Linear layers that read the same input, as one product, for forwards without gradients on the CPU.

In decoding a forward has few rows: the time goes into reading weights and into calls. So q, k and v (and gate and up)
are computed at once, from weights in the layout that the CPU's kernel wants. The A of every adapter that is in use
stands below those weights, and one further product adds what all B make of it. The values are those of the single
layers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from personalign.policy.lora import LoRADelta, LoRALinear, Routing, wrap

# An adapter's name, the number of the member that it is on, and its weights there.
Part = tuple[str, int, LoRADelta]

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
FEW = 16  # tokens up to which a small product is done sooner in float32 than by the bf16 kernel
PACKED_BYTES = 2**31  # packed weights stand beside the plain ones, which training needs: larger models do without


class Packed:
    """Weights [out, in] of layers, one below the other, packed for the CPU's bf16 kernel when first used."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        # Read past nn.Module's attribute look-up, which takes longer than all else here.
        self._found = [layer._parameters for layer in layers]
        self.size = sum(layer.out_features for layer in layers)
        self._version: object = None
        self._weight = torch.empty(0)
        self._bias: Tensor | None = None

    def usable(self, x: Tensor) -> bool:
        """Whether this is a case for it; a weight that is elsewhere just now (ZeRO-3) has no address."""
        fits = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
        return fits and all(weight.data_ptr() for weight in self._weights())

    def _weights(self) -> list[Tensor]:
        return [cast(Tensor, found["weight"]) for found in self._found]

    def __call__(self, x: Tensor, stack: Stack | None = None) -> Tensor:
        """x [..., in] -> [..., size], and A x of the stack [..., R] beside it."""
        version = [stack, *((weight.data_ptr(), weight._version) for weight in self._weights())]
        if version != self._version:
            self._pack(stack)
            self._version = version
        rows, two = len(x), x.numel() == 2 * x.shape[-1]
        x = torch.cat([x, x]) if two else x  # two tokens take the bf16 kernel longer than four
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y[:rows] if two else y

    def _pack(self, stack: Stack | None) -> None:
        below = [] if stack is None else [stack.down]
        self._weight = pack(torch.cat([*(layer.weight.detach() for layer in self.layers), *below]))
        if any(layer.bias is not None for layer in self.layers):
            zeros = [layer.weight.new_zeros(layer.out_features) for layer in self.layers]
            biases = [z if one.bias is None else one.bias for one, z in zip(self.layers, zeros, strict=True)]
            self._bias = torch.cat([*biases, *(part.new_zeros(len(part)) for part in below)])


def pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


class Stack:
    """Adapters of layers with one input as two matrices: A one below the other [R, in], B as blocks [size, R]."""

    def __init__(self, parts: Sequence[Part], sizes: Sequence[int], dtype: torch.dtype) -> None:
        self._deltas = [delta for _, _, delta in parts]
        self._version = self._now()
        self.down = torch.cat([delta.weights(dtype)[0] for _, _, delta in parts])
        self.ranks: dict[str, int] = {}  # how much of R is whose
        up = torch.zeros(sum(sizes), len(self.down), dtype=dtype)
        for name, member, delta in parts:
            rows, start = slice(sum(sizes[:member]), sum(sizes[: member + 1])), sum(self.ranks.values())
            up[rows, start : start + len(delta.A)] = delta.weights(dtype)[1]
            self.ranks[name] = self.ranks.get(name, 0) + len(delta.A)
        self._up, self._up_few = pack(up), up.float().t().contiguous()

    def _now(self) -> int:
        return sum([delta.version for delta in self._deltas])

    def fresh(self) -> bool:
        """Whether its adapters are what they were when it was made."""
        return self._version == self._now()

    def holds(self, parts: Sequence[Part]) -> bool:
        """Whether these adapters are in it; there may be more."""
        return all(any(delta is own for own in self._deltas) for _, _, delta in parts)

    def add(self, inner: Tensor, y: Tensor) -> Tensor:
        """y [..., size] plus B inner, for inner [..., R]."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(inner, y, self._up, None, "add")
        return found

    def add_few(self, inner: Tensor, y: Tensor) -> Tensor:
        """The same for few tokens, into y, which nobody else needs, from float32 `inner`."""
        return y.add_(inner @ self._up_few)


class Joint:
    """Adapted layers with one input. The first one that is asked computes all; the others take theirs."""

    def __init__(self, members: Sequence[LoRALinear], routing: Routing) -> None:
        self.members, self.routing = members, routing
        self.packed = Packed([member.base for member in members])
        self.sizes = [member.base.out_features for member in members]
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        self._stack: Stack | None = None
        self._gates: Tensor | None = None  # what each row opens of the stack, in float32
        self._parts: list[Part] = []
        self._parts_for: tuple[object, int] = (None, 0)

    def usable(self, x: Tensor) -> bool:
        known = self._input is x and not torch.is_grad_enabled()
        return known or self.packed.usable(x)

    def output(self, member: LoRALinear, x: Tensor) -> Tensor:
        """What `member` makes of x [rows, time, in]."""
        if self._input is not x or id(member) not in self._outputs:
            self._input = x
            parts = self._forward(x).split_with_sizes(self.sizes, -1)
            self._outputs = dict(zip(map(id, self.members), parts, strict=True))
        found = self._outputs.pop(id(member))
        if not self._outputs:
            self._input = None
        return found

    def _forward(self, x: Tensor) -> Tensor:
        parts = self._used()
        if parts and (self._stack is None or not self._stack.fresh()):
            self._stack, self._gates = Stack(parts, self.sizes, x.dtype), None
        if self._stack is None:
            return self.packed(x)
        y, inner = self.packed(x, self._stack).split_with_sizes([self.packed.size, len(self._stack.down)], -1)
        if not parts:
            return y
        if inner.shape[:-1].numel() > FEW:
            return self._stack.add(self.routing.opened(inner, self._stack.ranks), y)
        if self._gates is None or len(self._gates) != len(inner):
            self._gates = self.routing.weights(self._stack.ranks, len(inner), torch.float32, inner.device)
        return self._stack.add_few(inner * self._gates, y)

    def _used(self) -> list[Part]:
        """The adapters that any row uses here; looked up again when the routing, or what there is, has changed."""
        now = self.routing.slices, self.routing.adapted
        if self._parts_for[0] is not now[0] or self._parts_for[1] != now[1]:
            names = self.routing.names()
            self._parts = [(n, i, m.delta(n)) for n in names for i, m in enumerate(self.members) if n in m.deltas]
            if self._parts_for[1] != now[1] or (self._stack is not None and not self._stack.holds(self._parts)):
                self._stack = None
            self._parts_for, self._gates = now, None
        return self._parts


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
