"""Metadata of resident adapters in GPU memory, for kernels.

An adapter's number is its first rank row divided by the granule, so there is no separate slot
table. Its entries are written once, at load; a step only passes which tokens it applies to.

Legend: A adapters, G groups of layers, P parts of a group.
"""

from dataclasses import dataclass

import torch

from loramux_server.lora.row_allocator import GRANULE


@dataclass(frozen=True, slots=True)
class GroupTable:
    """Metadata of all resident adapters for one group of layers."""

    size_A: torch.Tensor
    """Allocated rank rows, int32."""
    rank_AP: torch.Tensor
    """Actual rank in each part, int32; 0 where the adapter does not change the layer."""
    scale_AP: torch.Tensor
    """Scale of each change, float32."""
    affine_AP: torch.Tensor
    """`Affine.kinds` of each layer, int32."""


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """Metadata of all resident adapters for all groups."""

    size_A: torch.Tensor
    rank_GAP: torch.Tensor
    scale_GAP: torch.Tensor
    affine_GAP: torch.Tensor

    @staticmethod
    def empty(
        num_groups: int, num_rows: int, num_parts: int, device: torch.device
    ) -> "AdapterTable":
        """Return a table for the adapters of a slab of `num_rows` rank rows."""
        size = (num_groups, num_rows // GRANULE, num_parts)
        return AdapterTable(
            torch.zeros(size[1], dtype=torch.int32, device=device),
            torch.zeros(size, dtype=torch.int32, device=device),
            torch.zeros(size, dtype=torch.float32, device=device),
            torch.zeros(size, dtype=torch.int32, device=device),
        )

    def group(self, group: int) -> GroupTable:
        """Return the view for one group of layers."""
        return GroupTable(
            self.size_A, self.rank_GAP[group], self.scale_GAP[group], self.affine_GAP[group]
        )
