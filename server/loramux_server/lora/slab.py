"""The device tier: one slab of rank rows behind each group of layers.

Group g has P parts that share an input (q, k and v, say). Its A slab has P rows for each rank row
of the allocator, its B slab one row across the outputs of all parts. An adapter that begins at row
r with size s has the A rows of part p at P*r + p*s, and its B rows at r. A row is as long as one of
float32; an adapter of 16 bits has two of its own in each. If it has factors and shifts of outputs,
they lie in the B slab from row r + s on, in float32. What an adapter does not use is never read.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.lora.adapter_table import AdapterTable
from loramux_server.lora.affine import FACTOR, SHIFT, VECTORS, Affine, vectors_of
from loramux_server.lora.give_way import give_way
from loramux_server.lora.packed import PackedAdapter
from loramux_server.wire.weight_format import Resting, WeightFormat

DTYPES = {
    WeightFormat.FLOAT32: torch.float32,
    WeightFormat.BFLOAT16: torch.bfloat16,
    WeightFormat.FLOAT16: torch.float16,
}
"""The formats as torch calls them."""
FORMATS = {dtype: form for form, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class GroupShape:
    """The shape of one group of layers that share an input."""

    in_features: int
    out_features: tuple[int, ...]
    """One width for each part."""

    @property
    def num_parts(self) -> int:
        """Layers in the group."""
        return len(self.out_features)

    @property
    def row_weights(self) -> int:
        """Weights in one rank row of the group: A rows of all parts and one B row."""
        return self.num_parts * self.in_features + sum(self.out_features)


def row_bytes(shapes: list[GroupShape], item_bytes: int = 4) -> int:
    """Return the bytes of one rank row over all groups, whose weights have `item_bytes` each."""
    return sum(shape.row_weights for shape in shapes) * item_bytes


class Slab:
    """The A and B rows of all adapters that are resident, for every group."""

    packs = False
    """Whether `write` takes nothing but what `pack` gave."""

    extended: list[torch.Tensor | None]
    """For each group, base weights with the A rows behind them; None where they lie apart."""
    resting: Resting | None = None
    """In which format an adapter rests here; None where any will do."""
    table: AdapterTable | None = None
    """What kernels on a GPU know of the adapters; None where they are told with each step."""

    def __init__(self, shapes: list[GroupShape], num_rows: int, device: torch.device) -> None:
        self.shapes = shapes
        self.num_rows = num_rows
        # Not zeroed: a row is written before it is read, and memory is taken when it is touched.
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
        """Format -> A and B of each group in rows of it."""

    def place(self, group: int, weight_NK: torch.Tensor) -> torch.Tensor:
        """Return the base weights of `group`, wherever they are to be."""
        return weight_NK

    def beside(self) -> AbstractContextManager[object]:
        """Let what a load computes on the device run beside the steps while the block runs."""
        return nullcontext()

    def note_step(self) -> None:
        """Take note that a step was started, which may read any row that somebody has now."""

    def pack(self, adapter: PackedAdapter) -> PackedAdapter:
        """Return `adapter` as `write` takes it; where it `packs`, in memory of its own."""
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
            give_way()
        for group, part, kind, vector_N in vectors_of(
            adapter.edits.affine if adapter.edits else {}
        ):
            self._vector(group, part, kind, row + size).copy_(vector_N)

    def _vector(self, group: int, part: int, kind: int, row: int) -> torch.Tensor:
        """Return where factors or shifts of a layer are that begin at `row`; see `vectors_of`."""
        n0, n1 = self._columns[group][part : part + 2]
        return vectors(self.b[group], row)[kind, n0:n1]


def vectors(b_RN: torch.Tensor, row: int) -> torch.Tensor:
    """Return the factors and the shifts that lie from `row` on, [2, N] of float32."""
    num_rows = VECTORS * torch.float32.itemsize // b_RN.dtype.itemsize
    return b_RN[row : row + num_rows].view(-1).view(torch.float32).view(VECTORS, -1)


def affine_at(b_RN: torch.Tensor, row: int, kinds: int, n0: int, n1: int) -> Affine:
    """Return what becomes of outputs `n0` to `n1`: of `vectors`, what is there by `kinds`."""
    if not kinds:
        return Affine()
    factor_N, shift_N = vectors(b_RN, row)[:, n0:n1]
    return Affine(factor_N if kinds & FACTOR else None, shift_N if kinds & SHIFT else None)


def weights(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the memory of `rows`, [R, K] of float32, as rows of K numbers of `dtype`."""
    return rows.view(dtype).view(-1, rows.shape[1])
