"""Writing keys and values to the KV cache, for layers without a fused kernel that does it.

Legend: T tokens of the batch, J key and value heads, D key width, E value width, S cache slots.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration."""

    heads: int = 8
    """Heads per program; a power of two."""
    num_warps: int = 4


DEFAULT = Blocks()


def write_cache(
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    k_TJD: torch.Tensor,
    v_TJE: torch.Tensor,
    slot_T: torch.Tensor,
) -> None:
    """Write the batch's keys and values to their slots; skip those with slot -1."""
    is_written_T = slot_T >= 0
    slots = slot_T[is_written_T]
    k_SJD.index_copy_(0, slots, k_TJD[is_written_T])
    v_SJE.index_copy_(0, slots, v_TJE[is_written_T])


def write_cache_triton(
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    k_TJD: torch.Tensor,
    v_TJE: torch.Tensor,
    slot_T: torch.Tensor,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Implement `write_cache`; the last dimension of the cache must be contiguous."""
    num_heads, key_width, value_width = *k_TJD.shape[1:], v_TJE.shape[2]
    _write_cache[len(slot_T), triton.cdiv(num_heads, blocks.heads)](
        k_SJD, k_SJD.stride(), v_SJE, v_SJE.stride(),
        k_TJD, k_TJD.stride(), v_TJE, v_TJE.stride(), slot_T,
        J=num_heads, D=key_width, E=value_width, BLOCK_J=blocks.heads,
        BLOCK_D=triton.next_power_of_2(key_width), BLOCK_E=triton.next_power_of_2(value_width),
        num_warps=blocks.num_warps,
    )  # fmt: skip


@triton.jit
def _write_cache(
    p_k_cache: tl.tensor,
    k_cache_stride: tl.tuple,
    p_v_cache: tl.tensor,
    v_cache_stride: tl.tuple,
    p_k: tl.tensor,
    k_stride: tl.tuple,
    p_v: tl.tensor,
    v_stride: tl.tuple,
    p_slot: tl.tensor,
    J: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_slot + token)
    if slot < 0:
        return
    head_J = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    _copy(p_k_cache, k_cache_stride, slot, p_k, k_stride, token, head_J, J, D, BLOCK_D)
    _copy(p_v_cache, v_cache_stride, slot, p_v, v_stride, token, head_J, J, E, BLOCK_E)


@triton.jit
def _copy(
    p_cache: tl.tensor,
    cache_stride: tl.tuple,
    slot: tl.tensor,
    p_x: tl.tensor,
    x_stride: tl.tuple,
    token: tl.tensor,
    head_J: tl.tensor,
    J: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    o_D = tl.arange(0, BLOCK_D)[None, :]
    m_JD = (head_J < J)[:, None] & (o_D < D)
    p_from = p_x + token * x_stride[0] + head_J[:, None] * x_stride[1] + o_D * x_stride[2]
    p_to = p_cache + slot * cache_stride[0] + head_J[:, None] * cache_stride[1] + o_D
    tl.store(p_to, tl.load(p_from, mask=m_JD, other=0.0), mask=m_JD)
