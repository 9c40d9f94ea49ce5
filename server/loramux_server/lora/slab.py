"""The device tier: a slab of rank rows for each group of layers.

A group has P parts (layers) that share an input, such as q, k and v. Its A slab has P rows per rank
row of the allocator, its B slab one row across the outputs of all parts. An adapter that begins at
row r with size s has the A rows of part p at P*r + p*s, and its B rows at r. A row has the size of
a float32 row, and holds two rows of a 16-bit adapter. Factors and shifts of outputs, if any, are
stored in the B slab from row r + s on, in float32. Unused rows are never read.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.lora.adapter_table import AdapterTable
from loramux_server.lora.affine import FACTOR, SHIFT, VECTORS, Affine, vectors_of
from loramux_server.lora.packed import PackedAdapter
from loramux_server.lora.yield_cpu import yield_cpu
from loramux_server.wire.weight_format import StorageFormat, WeightFormat

DTYPES = {
    WeightFormat.FLOAT32: torch.float32,
    WeightFormat.BFLOAT16: torch.bfloat16,
    WeightFormat.FLOAT16: torch.float16,
}
"""The formats as torch dtypes."""
FORMATS = {dtype: form for form, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class GroupShape:
    """The shape of one group of layers that share an input."""

    in_features: int
    out_features: tuple[int, ...]
    """Output width of each part."""

    @property
    def num_parts(self) -> int:
        """Layers in the group."""
        return len(self.out_features)

    @property
    def row_weights(self) -> int:
        """Weights in one rank row of the group: A rows of all parts and one B row."""
        return self.num_parts * self.in_features + sum(self.out_features)


def row_bytes(shapes: list[GroupShape], item_bytes: int = 4) -> int:
    """Return the bytes of one rank row over all groups, at `item_bytes` per weight."""
    return sum(shape.row_weights for shape in shapes) * item_bytes


class Slab:
    """The A and B rows of all resident adapters, for every group."""

    packs = False
    """Whether `write` only accepts results of `pack`."""

    extended: list[torch.Tensor | None]
    """Per group, base weights followed by the A rows; None where these are stored separately."""
    storage_format: StorageFormat | None = None
    """The storage format of adapters; None where any is supported."""
    table: AdapterTable | None = None
    """Adapter metadata on the device, for GPU kernels; None where each step passes it."""

    def __init__(self, shapes: list[GroupShape], num_rows: int, device: torch.device) -> None:
        self.shapes = shapes
        self.num_rows = num_rows
        # Not zeroed: rows are written before they are read, and untouched pages take no memory.
        self.a = [
            torch.empty(shape.num_parts * num_rows, shape.in_features, device=device)
            for shape in shapes
        ]
        self.b = [torch.empty(num_rows, sum(shape.out_features), device=device) for shape in shapes]
        self.extended = [None] * len(shapes)
        self._columns = [np.cumsum((0, *shape.out_features)).tolist() for shape in shapes]
        self._rows = {
            dtype: [
                (weights(a, dtype), weights(b, dtype)) for a, b in zip(self.a, self.b, strict=True)
            ]
            for dtype in DTYPES.values()
        }
        """dtype -> A and B slab of each group, viewed as rows of it."""

    def place(self, group: int, weight_NK: torch.Tensor) -> torch.Tensor:
        """Return the base weights of `group`, moved to where the slab wants them."""
        return weight_NK

    def on_load_stream(self) -> AbstractContextManager[object]:
        """Run the block's device work concurrently with steps, where the device can."""
        return nullcontext()

    def note_step(self) -> None:
        """Record that a step was started, which may read any allocated row."""

    def pack(self, adapter: PackedAdapter) -> PackedAdapter:
        """Return `adapter` in the form that `write` takes; if `packs`, in memory of its own."""
        return adapter

    def write(self, row: int, adapter: PackedAdapter) -> None:
        """Copy `adapter` to the run of rows that begins at `row`; the caller owns those rows."""
        size, dtype = adapter.num_rows, DTYPES[adapter.format]
        held, per_row = self._rows[dtype], torch.float32.itemsize // dtype.itemsize
        for layer in adapter.layers:
            group, part = layer.place.group, layer.place.part
            (a_RK, b_RN), rank = held[group], layer.a_RK.shape[0]
            first = per_row * (self.shapes[group].num_parts * row + part * size)
            a_RK[first : first + rank].copy_(torch.from_numpy(layer.a_RK).view(dtype))
            n0, n1 = self._columns[group][part : part + 2]
            first = per_row * row
            b_RN[first : first + rank, n0:n1].copy_(torch.from_numpy(layer.b_RN).view(dtype))
            yield_cpu()
        for group, part, kind, vector_N in vectors_of(
            adapter.edits.affine if adapter.edits else {}
        ):
            self._vector(group, part, kind, row + size).copy_(vector_N)

    def _vector(self, group: int, part: int, kind: int, row: int) -> torch.Tensor:
        """Return the factors (kind 0) or shifts (1) of a layer, stored from `row` on, as a view."""
        n0, n1 = self._columns[group][part : part + 2]
        return vectors(self.b[group], row)[kind, n0:n1]


def vectors(b_RN: torch.Tensor, row: int) -> torch.Tensor:
    """Return the factors and shifts stored from `row` on, [2, N] of float32, as a view."""
    num_rows = VECTORS * torch.float32.itemsize // b_RN.dtype.itemsize
    return b_RN[row : row + num_rows].view(-1).view(torch.float32).view(VECTORS, -1)


def affine_at(b_RN: torch.Tensor, row: int, kinds: int, n0: int, n1: int) -> Affine:
    """Return factor and shift of outputs `n0` to `n1`, as far as `kinds` flags them."""
    if not kinds:
        return Affine()
    factor_N, shift_N = vectors(b_RN, row)[:, n0:n1]
    return Affine(factor_N if kinds & FACTOR else None, shift_N if kinds & SHIFT else None)


def weights(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `rows`, [R, K] of float32, viewed as rows of K numbers of `dtype`."""
    return rows.view(dtype).view(-1, rows.shape[1])
