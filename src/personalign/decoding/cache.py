"""A key/value cache of rows that is written in place, and from which rows that ended are taken out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer: buffers [rows, heads, capacity, width], filled up to column `length`.

    Writing in place spares the copy of the whole cache that concatenation costs at every token. A forward sees the
    rows of `window` from column `start` on.
    """

    is_sliding = False

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.capacity, self.start, self.length = rows, capacity, 0, 0
        self.window = slice(0, rows)
        self.buffers: list[Tensor] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.buffers = [
            new.new_empty((self.rows, new.shape[1], self.capacity, new.shape[3])) for new in (key_states, value_states)
        ]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.buffers:
            self.lazy_initialization(key_states, value_states)
        stop = self.length + key_states.shape[2]
        keys, values = self.buffers
        if self.start:  # hidden by a mask later on, but what is there must be a number
            keys[self.window, :, : self.start] = values[self.window, :, : self.start] = 0
        keys[self.window, :, self.length : stop] = key_states
        values[self.window, :, self.length : stop] = value_states
        self.length = stop
        return keys[self.window, :, self.start : stop], values[self.window, :, self.start : stop]

    def put(self, rows: Tensor, column: int, other: RowLayer, columns: int) -> None:
        """Copy the first columns of another layer's rows into these rows from `column` on; before it they are zero."""
        if not self.buffers:
            self.lazy_initialization(other.buffers[0], other.buffers[1])
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[rows, :, :column] = 0
            mine[rows, :, column : column + columns] = theirs[:, :, :columns]

    def select(self, index: Tensor, start: int, room: int) -> None:
        """Keep the rows of `index` (repeats allowed) and the columns from `start` on, with `room` for further ones."""
        kept = self.length - start
        for i, old in enumerate(self.buffers):
            new = old.new_empty((len(index), old.shape[1], kept + room, old.shape[3]))
            torch.index_select(old[:, :, start : self.length], 0, index, out=new[:, :, :kept])
            self.buffers[i] = new
        self._resized(len(index), kept, room)

    def join(self, other: RowLayer, index: Tensor, room: int) -> None:
        """Put the rows of another layer, which loses them, behind these, so that all end at the same column, and bring
        them in the order of `index`. What is left of the shorter ones is zero: hidden by a mask later on."""
        length = max(self.length, other.length)
        mine = index < self.rows
        parts = [(mine, index[mine], self), (~mine, index[~mine] - self.rows, other)]
        for i, old in enumerate(self.buffers):
            new = old.new_zeros((len(index), old.shape[1], length + room, old.shape[3]))
            for places, rows, layer in parts:
                new[places, :, length - layer.length : length] = layer.buffers[i][rows, :, : layer.length]
            self.buffers[i] = new
        other.buffers = []
        self._resized(len(index), length, room)

    def keep(self, leaf: Tensor, leaves: int) -> None:
        """Of the last `leaves` columns keep the one that `leaf` [rows] says."""
        first = self.length - leaves
        rows = torch.arange(self.rows, device=leaf.device)
        for buffer in self.buffers:
            buffer[:, :, first] = buffer[rows, :, first + leaf]
        self.length = first + 1

    def _resized(self, rows: int, length: int, room: int) -> None:
        self.rows, self.capacity, self.length = rows, length + room, length
        self.whole()

    def whole(self) -> None:
        """Let forwards see every row from the first column on."""
        self.window, self.start = slice(0, self.rows), 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length - self.start + query_length, 0

    def get_seq_length(self) -> int:
        return self.length - self.start

    def get_max_length(self) -> int:
        return self.capacity


class RowCache(Cache):
    """One RowLayer per decoder layer; prefill goes window by window.

    The lowest `depth` layers hold the trunk's rows (see `policy.trunk`), those above all rows.
    """

    def __init__(self, layers: int, rows: int, capacity: int, depth: int = 0, trunk_rows: int = 0) -> None:
        self.trunk = [RowLayer(trunk_rows, capacity) for _ in range(depth)]
        self.crown = [RowLayer(rows, capacity) for _ in range(layers - depth)]
        super().__init__(layers=[*self.trunk, *self.crown])

    @property
    def capacity(self) -> int:
        return self.crown[0].capacity

    @property
    def cells(self) -> int:
        """Tokens that the largest layer has memory for: rows x columns."""
        return max(layer.rows * layer.capacity for layer in (*self.trunk, *self.crown))

    def window(self, rows: slice, trunk_rows: slice, start: int, filled: int) -> None:
        """The next forward sees these rows from `start` on, and fills them from `filled` on."""
        for layers, window in ((self.trunk, trunk_rows), (self.crown, rows)):
            for layer in layers:
                layer.window, layer.start, layer.length = window, start, filled

    def put(self, rows: Tensor, trunk_row: Tensor, column: int, other: RowCache, columns: int) -> None:
        """Copy the first columns of all rows of another cache, and of its trunk's one, to these from `column` on."""
        for mine, theirs, index in ((self.trunk, other.trunk, trunk_row), (self.crown, other.crown, rows)):
            for layer, read in zip(mine, theirs, strict=True):
                layer.put(index, column, read, columns)

    def select(self, rows: Tensor, trunk_rows: Tensor, start: int, room: int) -> None:
        """Keep these rows (repeats allowed) and the columns from `start` on, with `room` for further ones."""
        for layers, index in ((self.trunk, trunk_rows), (self.crown, rows)):
            same = start == 0 and bool(layers) and index.tolist() == list(range(layers[0].rows))
            for layer in layers:
                layer.whole() if same else layer.select(index, start, room)

    def keep(self, leaf: Tensor, trunk_leaf: Tensor, leaves: int) -> None:
        """Of the last `leaves` columns keep one in every row, and in every row of the trunk."""
        for layers, index in ((self.trunk, trunk_leaf), (self.crown, leaf)):
            for layer in layers:
                layer.keep(index, leaves)

    def cut(self, depth: int, of: Tensor) -> None:
        """Let the trunk end at `depth`: above, row i goes on from the trunk's row `of`[i]."""
        for layer in self.trunk[depth:]:
            layer.select(of, 0, layer.capacity - layer.length)
        self.trunk, self.crown = self.trunk[:depth], self.trunk[depth:] + self.crown

    def join(self, other: RowCache, rows: Tensor, trunk_rows: Tensor, room: int) -> None:
        """Put another cache's rows, with a trunk of the same depth, behind these; then all come in the given order."""
        for mine, theirs, index in (
            (self.trunk, other.trunk, trunk_rows),
            (self.crown, other.crown, rows),
        ):
            for layer, joining in zip(mine, theirs, strict=True):
                layer.join(joining, index, room)
