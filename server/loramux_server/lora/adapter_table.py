"""What kernels on a GPU need to know of the resident adapters, in memory of the device.

An adapter's number is its first rank row divided by the granule, so that no table of slots has to
be kept: what is said of it here is written once, when it is loaded, and a step only says which
tokens it applies to.

Legend: A adapters, G groups of layers, P parts of a group.
"""

from dataclasses import dataclass

import torch

from loramux_server.lora.row_allocator import GRANULE


@dataclass(frozen=True, slots=True)
class GroupTable:
    """What is known of all resident adapters in one group of layers."""

    size_A: torch.Tensor
    """Rank rows that each takes, int32."""
    rank_AP: torch.Tensor
    """True rank in each part, int32; 0 where the adapter does not change the layer."""
    scale_AP: torch.Tensor
    """Factor of each change, float32."""
    affine_AP: torch.Tensor
    """`Affine.kinds` of each layer, int32."""


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """What is known of all resident adapters."""

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
        """Return what concerns one group of layers."""
        return GroupTable(
            self.size_A, self.rank_GAP[group], self.scale_GAP[group], self.affine_GAP[group]
        )
