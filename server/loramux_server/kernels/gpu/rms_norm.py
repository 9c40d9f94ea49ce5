"""RMS norm, one row per program.

Legend: T tokens, K width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration."""

    num_warps: int = 4
    """Warps per row, which is held in registers."""


DEFAULT = Blocks()


def rms_norm_triton(
    x_TK: torch.Tensor, weight_K: torch.Tensor, epsilon: float, *, blocks: Blocks = DEFAULT
) -> torch.Tensor:
    """Implement `pointwise.rms_norm`, for a weight of the dtype of x."""
    width = x_TK.shape[-1]
    rows = x_TK.reshape(-1, width)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty(rows.shape, dtype=x_TK.dtype, device=x_TK.device)
    if len(rows):
        _rms_norm[(len(rows),)](
            rows, rows.stride(0), weight_K, epsilon, out, out.stride(0),
            WIDTH=width, BLOCK_K=triton.next_power_of_2(width), num_warps=blocks.num_warps,
        )  # fmt: skip
    return out.view(x_TK.shape)


@triton.jit
def _rms_norm(
    p_x: tl.tensor,
    x_stride: tl.tensor,
    p_weight: tl.tensor,
    epsilon: tl.tensor,
    p_out: tl.tensor,
    out_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    o_K = tl.arange(0, BLOCK_K)
    m_K = o_K < WIDTH
    x_K = tl.load(p_x + i_row * x_stride + o_K, mask=m_K, other=0.0).to(tl.float32)
    weight_K = tl.load(p_weight + o_K, mask=m_K, other=0.0)
    factor = tl.rsqrt(tl.sum(x_K * x_K, 0) / WIDTH + epsilon)
    out_K = (x_K * factor).to(p_x.dtype.element_ty) * weight_K
    tl.store(p_out + i_row * out_stride + o_K, out_K, mask=m_K)
