"""One matmul of a mixture of experts with LoRA applied, on a GPU.

It does not synchronize with the host where `grouped_mm` applies (see `_base`). Each adapter's
change is an allocation of its own, so the kernels take addresses.

Legend: P pairs of a token and one of its experts, E experts, K input width, N output width, C
changes of the step, after a first one that changes nothing, R rank rows of an expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels.experts import (
    ExpertLinears,
    ExpertWeights,
    Pairs,
    multiply_experts,
)
from loramux_server.kernels.sending import send
from loramux_server.lora.experts_edit import ExpertRows
from loramux_server.lora.slab import DTYPES

_FORMATS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
_ALIGNED = 8
"""`grouped_mm` requires widths that are multiples of this."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration; powers of two."""

    rows: int = 16
    """Rows of A, and of B, that a program processes at once."""
    k: int = 256
    n: int = 256
    num_warps: int = 4


DEFAULT = Blocks()


def multiply_experts_triton(
    x_PK: torch.Tensor,
    linears: ExpertLinears,
    pairs: Pairs,
    changes: Sequence[ExpertRows | None],
    *,
    blocks: Blocks = DEFAULT,
) -> torch.Tensor:
    """Implement `kernels.experts.multiply_experts`; the change is accumulated in float32."""
    assert isinstance(linears, ExpertWeights)
    y_PN = _base(x_PK, linears, pairs)
    for dtype in {DTYPES[rows.format] for rows in changes if rows is not None}:
        chosen = [
            rows if rows is not None and DTYPES[rows.format] is dtype else None for rows in changes
        ]
        _add(y_PN, x_PK, pairs, chosen, dtype, blocks)
    return y_PN


def _base(x_PK: torch.Tensor, weights: ExpertWeights, pairs: Pairs) -> torch.Tensor:
    """Return the base's output for `x_PK`, [P, N]."""
    weight_ENK, bias_EN = weights.weight_ENK, weights.bias_EN
    num_experts, width_out, width_in = weight_ENK.shape
    if not x_PK.is_cuda or x_PK.dtype is not torch.bfloat16 or (width_in | width_out) % _ALIGNED:
        return multiply_experts(x_PK, weights, pairs, ())
    ends_E = torch.arange(1, num_experts + 1, device=x_PK.device) * pairs.num_kinds
    offsets_E = torch.searchsorted(pairs.key_P, ends_E).to(torch.int32)
    y_PN = torch.nn.functional.grouped_mm(x_PK, weight_ENK.transpose(1, 2), offs=offsets_E)
    if bias_EN is not None:
        y_PN += bias_EN[pairs.key_P // pairs.num_kinds]
    return y_PN


def _add(
    y_PN: torch.Tensor, x_PK: torch.Tensor, pairs: Pairs, changes: Sequence[ExpertRows | None],
    dtype: torch.dtype, blocks: Blocks,
) -> None:  # fmt: skip
    """Add the changes, all stored in `dtype`, to `y_PN`."""
    device = y_PN.device
    per_row = torch.float32.itemsize // dtype.itemsize
    about = [(0, 0, 0, 0)] + [
        (rows.a_RK.data_ptr(), rows.b_RN.data_ptr(), rows.size * per_row, rows.rank) if rows
        else (0, 0, 0, 0)
        for rows in changes
    ]  # fmt: skip
    about_XC = send(torch.tensor(about, dtype=torch.int64).T.contiguous(), device)
    scale_C = send(torch.tensor([0.0, *(rows.scale if rows else 0.0 for rows in changes)]), device)
    most_rows = triton.next_power_of_2(max(rows.rank for rows in changes if rows))
    h_PR = torch.empty(len(x_PK), max(most_rows, blocks.rows), dtype=torch.float32, device=device)
    _shrink_experts[len(x_PK), h_PR.shape[1] // blocks.rows](
        x_PK, x_PK.stride(0), pairs.key_P, about_XC, scale_C, len(about), pairs.num_kinds,
        h_PR, h_PR.stride(0),
        WIDTH=x_PK.shape[1], FORMAT=_FORMATS[dtype], BLOCK_R=blocks.rows, BLOCK_K=blocks.k,
        num_warps=blocks.num_warps,
    )  # fmt: skip
    _expand_experts[len(x_PK), triton.cdiv(y_PN.shape[1], blocks.n)](
        y_PN, y_PN.stride(0), pairs.key_P, about_XC, len(about), pairs.num_kinds,
        h_PR, h_PR.stride(0),
        WIDTH=y_PN.shape[1], FORMAT=_FORMATS[dtype], BLOCK_R=blocks.rows, BLOCK_N=blocks.n,
        num_warps=blocks.num_warps,
    )  # fmt: skip


@triton.jit
def _shrink_experts(
    p_x: tl.tensor,
    x_stride: tl.tensor,
    p_key: tl.tensor,
    p_about: tl.tensor,
    p_scale: tl.tensor,
    num_about: tl.tensor,
    num_kinds: tl.tensor,
    p_h: tl.tensor,
    h_stride: tl.tensor,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Write h = scale * A[e] x of one pair, for a block of rank rows."""
    pair = tl.program_id(0).to(tl.int64)
    key = tl.load(p_key + pair)
    change = key % num_kinds
    row_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    size = tl.load(p_about + 2 * num_about + change)
    is_row_R = row_R < tl.load(p_about + 3 * num_about + change)
    p_a = tl.load(p_about + change).to(tl.pointer_type(FORMAT))
    first_R = (key // num_kinds * size + row_R) * WIDTH
    h_R = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        k_K = start + tl.arange(0, BLOCK_K)
        is_k_K = k_K < WIDTH
        x_K = tl.load(p_x + pair * x_stride + k_K, mask=is_k_K, other=0.0).to(tl.float32)
        is_there_RK = is_row_R[:, None] & is_k_K[None, :]
        a_RK = tl.load(p_a + first_R[:, None] + k_K[None, :], mask=is_there_RK, other=0.0)
        h_R += tl.sum(a_RK.to(tl.float32) * x_K[None, :], axis=1)
    tl.store(p_h + pair * h_stride + row_R, h_R * tl.load(p_scale + change))


@triton.jit
def _expand_experts(
    p_y: tl.tensor,
    y_stride: tl.tensor,
    p_key: tl.tensor,
    p_about: tl.tensor,
    num_about: tl.tensor,
    num_kinds: tl.tensor,
    p_h: tl.tensor,
    h_stride: tl.tensor,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Add B[e] h of one pair, for a block of outputs."""
    pair = tl.program_id(0).to(tl.int64)
    key = tl.load(p_key + pair)
    change = key % num_kinds
    n_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rank = tl.load(p_about + 3 * num_about + change)
    size = tl.load(p_about + 2 * num_about + change)
    # Pairs without a change are not read or written.
    is_n_N = n_N < tl.where(rank > 0, WIDTH, 0)
    p_b = tl.load(p_about + num_about + change).to(tl.pointer_type(FORMAT))
    first = key // num_kinds * size
    sum_N = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, rank, BLOCK_R):
        row_R = start + tl.arange(0, BLOCK_R)
        is_row_R = row_R < rank
        h_R = tl.load(p_h + pair * h_stride + row_R, mask=is_row_R, other=0.0)
        is_there_RN = is_row_R[:, None] & is_n_N[None, :]
        p_b_RN = p_b + (first + row_R)[:, None] * WIDTH + n_N[None, :]
        b_RN = tl.load(p_b_RN, mask=is_there_RN, other=0.0)
        sum_N += tl.sum(b_RN.to(tl.float32) * h_R[:, None], axis=0)
    p_out = p_y + pair * y_stride + n_N
    y_N = tl.load(p_out, mask=is_n_N, other=0.0).to(tl.float32)
    tl.store(p_out, (y_N + sum_N).to(p_y.dtype.element_ty), mask=is_n_N)
