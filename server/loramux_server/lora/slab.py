"""The device tier: one slab of rank rows behind each group of layers.

Group g has P parts that share an input (q, k and v, say). Its A slab has P rows for each rank row
of the allocator, its B slab one row across the outputs of all parts. An adapter that begins at row
r with size s has the A rows of part p at P*r + p*s, and its B rows at r. Rows that an adapter does
not use are never read.
"""

from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.lora.packed import PackedAdapter
from loramux_server.lora.row_allocator import rows_of


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


def row_weights(shapes: list[GroupShape]) -> int:
    """Return the weights in one rank row over all groups."""
    return sum(shape.row_weights for shape in shapes)


class Slab:
    """The A and B rows of all adapters that are resident, for every group."""

    def __init__(
        self, shapes: list[GroupShape], num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes = shapes
        self.num_rows = num_rows
        # Not zeroed: a row is written before it is read, and memory is taken when it is touched.
        self.a = [
            torch.empty(shape.num_parts * num_rows, shape.in_features, dtype=dtype, device=device)
            for shape in shapes
        ]
        self.b = [
            torch.empty(num_rows, sum(shape.out_features), dtype=dtype, device=device)
            for shape in shapes
        ]
        self._columns = [np.cumsum((0, *shape.out_features)).tolist() for shape in shapes]

    def write(self, row: int, adapter: PackedAdapter) -> None:
        """Copy `adapter` to the run of rows that begins at `row`; the caller owns those rows."""
        size = rows_of(adapter.rank)
        for layer in adapter.layers:
            group, part = layer.place.group, layer.place.part
            rank = layer.a_RK.shape[0]
            first = self.shapes[group].num_parts * row + part * size
            self.a[group][first : first + rank].copy_(torch.from_numpy(layer.a_RK))
            columns = self._columns[group]
            self.b[group][row : row + rank, columns[part] : columns[part + 1]].copy_(
                torch.from_numpy(layer.b_RN)
            )
