"""The values of `LoraOperands` in the layout of peers: every adapter padded to the largest rank.

Legend: T tokens, K input width, N output width of a part, R rank, S adapters, P parts.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from benchmarks.gpu.operands import SCALE, LoraOperands
from loramux_server.lora.row_allocator import RowSize


@dataclass(frozen=True, slots=True)
class Padded:
    """A and B of all adapters, for each part; zero beyond the rank, B times the scale."""

    a_PSRK: list[torch.Tensor]
    b_PSNR: list[torch.Tensor]

    @staticmethod
    def of(operands: LoraOperands, slab: int, least_rank: int = 1) -> "Padded":
        """Return the content of a pair of slabs, with at least `least_rank` ranks."""
        a_RK, b_RN = operands.slabs[slab]
        num_parts, num_adapters = len(operands.outputs), len(operands.ranks)
        rank = max(least_rank, *operands.ranks)
        padded = Padded(
            [a_RK.new_zeros(num_adapters, rank, operands.width) for _ in operands.outputs],
            [b_RN.new_zeros(num_adapters, outputs, rank) for outputs in operands.outputs],
        )
        for i, (row, used) in enumerate(zip(operands.rows, operands.ranks, strict=True)):
            for part, (n0, n1) in enumerate(pairwise(operands.columns)):
                first = num_parts * row + part * RowSize().rows_of(used)
                padded.a_PSRK[part][i, :used] = a_RK[first : first + used]
                padded.b_PSNR[part][i, :, :used] = b_RN[row : row + used, n0:n1].T * SCALE
        return padded

    def expected(self, operands: LoraOperands) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return h and the update of y of each part, (T, R) and (T, N), in float64."""
        x_TK = operands.x_TK.double()
        runs = list(enumerate(pairwise(operands.borders)))
        h_PTR = [
            torch.cat([x_TK[t0:t1] @ a_SRK[i].double().T for i, (t0, t1) in runs])
            for a_SRK in self.a_PSRK
        ]
        change_PTN = [
            torch.cat([h_TR[t0:t1] @ b_SNR[i].double().T for i, (t0, t1) in runs])
            for h_TR, b_SNR in zip(h_PTR, self.b_PSNR, strict=True)
        ]
        return h_PTR, change_PTN
