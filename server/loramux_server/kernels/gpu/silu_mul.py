"""The SiLU gate of an MLP, fused with the LoRA update of gate and up.

Legend: T tokens, I width of gate and of up, N = 2 * I.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels import pointwise
from loramux_server.kernels.gpu.arguments import low_rank_arguments, tile_arguments
from loramux_server.kernels.gpu.change import changed, changed_pair, prefetch_lora
from loramux_server.kernels.gpu.dependent_launch import launch_options, wait_for_predecessor
from loramux_server.kernels.gpu.tiles import LowRank, Tiles, tokens


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration; powers of two, block sizes 16 or more."""

    n: int = 64
    """Columns of gate, and as many of up, per program."""
    num_warps: int = 4
    num_stages: int = 2


DEFAULT = Blocks()


def silu_mul(
    gate_up_TN: torch.Tensor, low_rank: LowRank | None, tiles: Tiles, out_TI: torch.Tensor
) -> None:
    """Write `silu(gate) * up` of each token of `tiles` to `out_TI`.

    Gate and up are the halves of `gate_up_TN` with LoRA applied. Computed in float32.
    """
    token_T, width = tokens(tiles), gate_up_TN.shape[1]
    changed_TN = changed(gate_up_TN, low_rank, (0, width // 2, width), tiles)
    out_TI[token_T] = pointwise.silu_mul(changed_TN[token_T]).to(out_TI.dtype)


def silu_mul_triton(
    gate_up_TN: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    out_TI: torch.Tensor,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Implement `silu_mul`."""
    width = out_TI.shape[1]
    _silu_mul[(len(tiles.start_I), triton.cdiv(width, blocks.n))](
        gate_up_TN, gate_up_TN.stride(0), low_rank_arguments(low_rank), tile_arguments(tiles),
        out_TI, out_TI.stride(0),
        WIDTH=width, BLOCK_T=tiles.size, BLOCK_N=blocks.n,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        **launch_options(out_TI.device, low_rank),
    )  # fmt: skip


@triton.jit
def _silu_mul(
    p_y: tl.tensor,
    y_stride: tl.tensor,
    low_rank: tl.tuple,
    tiles: tl.tuple,
    p_out: tl.tensor,
    out_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    i_tile = tl.program_id(0)
    count = tl.load(tiles.count_I + i_tile)
    start = tl.load(tiles.start_I + i_tile)
    adapter = tl.load(tiles.adapter_I + i_tile)
    if count == 0:
        wait_for_predecessor(IS_DEPENDENT)
        return
    o_T = tl.arange(0, BLOCK_T)
    m_T = o_T < count
    token_T = (start + o_T).to(tl.int64)
    o_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_N = o_N < WIDTH
    m_TN = m_T[:, None] & m_N[None, :]
    dtype: tl.constexpr = p_y.dtype.element_ty
    if low_rank is not None:
        gate = prefetch_lora(low_rank, adapter, 0, o_N, m_N, dtype)
        up = prefetch_lora(low_rank, adapter, 1, o_N + WIDTH, m_N, dtype)
    wait_for_predecessor(IS_DEPENDENT)
    p_gate = p_y + token_T[:, None] * y_stride + o_N[None, :]
    gate_TN = tl.load(p_gate, mask=m_TN, other=0.0).to(tl.float32)
    up_TN = tl.load(p_gate + WIDTH, mask=m_TN, other=0.0).to(tl.float32)
    if low_rank is not None:
        gate_TN, up_TN = changed_pair(
            gate_TN, up_TN, low_rank, gate, up, adapter, 0, 1,
            token_T, m_T, o_N, o_N + WIDTH, m_N, 2,
        )  # fmt: skip
    out_TN = gate_TN / (1 + tl.exp(-gate_TN)) * up_TN
    p_TN = p_out + token_T[:, None] * out_stride + o_N[None, :]
    tl.store(p_TN, out_TN.to(p_out.dtype.element_ty), mask=m_TN)
