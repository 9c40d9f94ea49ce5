"""Fused LoRA update, QK norm, RoPE and KV cache write.

Legend: T tokens, N = (H + 2 * J) * D, H query heads, J key and value heads, D head width, S cache
slots.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from loramux_server.kernels import pointwise
from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.gpu.arguments import low_rank_arguments, tile_arguments
from loramux_server.kernels.gpu.change import changed, changed_pair, prefetch_lora
from loramux_server.kernels.gpu.dependent_launch import launch_options, wait_for_predecessor
from loramux_server.kernels.gpu.tiles import LowRank, Tiles, tokens


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration."""

    heads: int = 1
    """Most heads per program, which handles all tokens of a tile; a power of two."""
    num_warps: int = 4
    num_stages: int = 2


DEFAULT = Blocks()


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Per-head norms of queries and keys, applied before RoPE."""

    query: Norm
    key: Norm


def rope_write(
    qkv_TN: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    norms: HeadNorms | None,
    cos_TD: torch.Tensor,
    sin_TD: torch.Tensor,
    slot_T: torch.Tensor,
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJD: torch.Tensor,
) -> None:
    """Write rotated queries to `q_THD`, and rotated keys and the values to their cache slots.

    Semantics, for the tokens of `tiles`, in float32 until written:

        q, k, v = changed(qkv)
        q[t], k[slot[t]], v[slot[t]] = rotate(norm(q[t])), rotate(norm(k[t])), v[t]

    A norm is `pointwise.rms_norm`, which rounds before its weight is applied.

    Args:
        qkv_TN: Queries, keys and values side by side, from the base layers.
        low_rank: The rest of the LoRA update after A; None changes nothing.
        tiles: Which adapter applies to which tokens.
        norms: None where heads are not normalized.
        cos_TD: Cosines of each token's angles.
        sin_TD: Sines, likewise.
        slot_T: Cache slot of each token, int64.
        q_THD: Output for queries.
        k_SJD: Key cache.
        v_SJD: Value cache.
    """
    token_T, dtype = tokens(tiles), qkv_TN.dtype
    (_, num_heads, width), key_heads = q_THD.shape, k_SJD.shape[1]
    ends = [heads * width for heads in (num_heads, num_heads + key_heads)]
    columns = (0, *ends, qkv_TN.shape[1])
    changed_TN = changed(qkv_TN, low_rank, columns, tiles)[token_T]
    q, k, v = (x.reshape(len(x), -1, width) for x in changed_TN.tensor_split(ends, 1))
    if norms is not None:
        q, k = (
            (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.epsilon)).to(dtype).float()
            * norm.weight_K.float()
            for x, norm in ((q, norms.query), (k, norms.key))
        )
    pointwise.rotate(q, k, cos_TD[token_T].float(), sin_TD[token_T].float())
    q_THD[token_T] = q.to(dtype)
    k_SJD[slot_T[token_T]] = k.to(dtype)
    v_SJD[slot_T[token_T]] = v.to(dtype)


def rope_write_triton(
    qkv_TN: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    norms: HeadNorms | None,
    cos_TD: torch.Tensor,
    sin_TD: torch.Tensor,
    slot_T: torch.Tensor,
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJD: torch.Tensor,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Implement `rope_write`."""
    (_, num_heads, width), key_heads = q_THD.shape, k_SJD.shape[1]
    # A program handles only queries, only keys or only values.
    heads = math.gcd(blocks.heads, num_heads, key_heads)
    _rope_write[(len(tiles.start_I), (num_heads + 2 * key_heads) // heads)](
        qkv_TN, qkv_TN.stride(0), low_rank_arguments(low_rank), tile_arguments(tiles),
        norms and _NormArguments(
            norms.query.weight_K, norms.query.epsilon, norms.key.weight_K, norms.key.epsilon
        ),
        cos_TD, cos_TD.stride(0), sin_TD, sin_TD.stride(0), slot_T,
        *(_HeadArguments(x, x.stride(0), x.stride(1)) for x in (q_THD, k_SJD, v_SJD)),
        QUERY_HEADS=num_heads, KEY_HEADS=key_heads, WIDTH=width,
        HEADS=heads, BLOCK_T=tiles.size, BLOCK_D=max(16, triton.next_power_of_2(width // 2)),
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        **launch_options(q_THD.device, low_rank),
    )  # fmt: skip


class _NormArguments(NamedTuple):
    query_weight_D: torch.Tensor
    query_epsilon: float
    key_weight_D: torch.Tensor
    key_epsilon: float


class _HeadArguments(NamedTuple):
    memory: torch.Tensor
    stride: int
    head_stride: int


@triton.jit
def _rope_write(
    p_qkv: tl.tensor,
    qkv_stride: tl.tensor,
    low_rank: tl.tuple,
    tiles: tl.tuple,
    norms: tl.tuple,
    p_cos: tl.tensor,
    cos_stride: tl.tensor,
    p_sin: tl.tensor,
    sin_stride: tl.tensor,
    p_slot: tl.tensor,
    q: tl.tuple,
    k: tl.tuple,
    v: tl.tuple,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    i_tile, head = tl.program_id(0), tl.program_id(1) * HEADS
    count = tl.load(tiles.count_I + i_tile)
    start = tl.load(tiles.start_I + i_tile)
    adapter = tl.load(tiles.adapter_I + i_tile)
    if count == 0:
        wait_for_predecessor(IS_DEPENDENT)
        return
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = p_qkv.dtype.element_ty
    is_query = head < QUERY_HEADS
    is_value = head >= QUERY_HEADS + KEY_HEADS
    o_T = tl.arange(0, BLOCK_T)
    m_T = o_T < count
    token_T = (start + o_T).to(tl.int64)
    # Columns D are the first halves of the program's heads, head by head.
    o_H = tl.arange(0, HEADS * BLOCK_D) // BLOCK_D
    o_D = tl.arange(0, HEADS * BLOCK_D) % BLOCK_D
    m_D = o_D < HALF
    m_TD = m_T[:, None] & m_D[None, :]
    o_N = (head + o_H) * WIDTH + o_D
    if low_rank is not None:
        part = tl.where(is_query, 0, tl.where(is_value, 2, 1))
        first = prefetch_lora(low_rank, adapter, part, o_N, m_D, dtype)
        second = prefetch_lora(low_rank, adapter, part, o_N + HALF, m_D, dtype)
    wait_for_predecessor(IS_DEPENDENT)
    p_TD = p_qkv + token_T[:, None] * qkv_stride + o_N[None, :]
    a_TD = tl.load(p_TD, mask=m_TD, other=0.0).to(tl.float32)
    b_TD = tl.load(p_TD + HALF, mask=m_TD, other=0.0).to(tl.float32)
    if low_rank is not None:
        a_TD, b_TD = changed_pair(
            a_TD, b_TD, low_rank, first, second, adapter, part, part,
            token_T, m_T, o_N, o_N + HALF, m_D, 3,
        )  # fmt: skip
    slot_T = tl.load(p_slot + token_T, mask=m_T, other=0)
    if is_value:
        # Each branch stores by itself: a value merged after them would need a layout conversion.
        p_T = v.memory + slot_T * v.stride
        o_N = (head - QUERY_HEADS - KEY_HEADS + o_H) * v.head_stride + o_D
        _store_halves(p_T, a_TD, b_TD, o_N, m_TD, HALF)
        return
    if norms is not None:
        square_THD = tl.reshape(a_TD * a_TD + b_TD * b_TD, (BLOCK_T, HEADS, BLOCK_D))
        epsilon = tl.where(is_query, norms.query_epsilon, norms.key_epsilon)
        factor_TH = tl.rsqrt(tl.sum(square_THD, 2) / WIDTH + epsilon)
        factor_THD = tl.broadcast_to(factor_TH[:, :, None], (BLOCK_T, HEADS, BLOCK_D))
        factor_TD = tl.reshape(factor_THD, (BLOCK_T, HEADS * BLOCK_D))
        p_D = tl.where(is_query, norms.query_weight_D, norms.key_weight_D) + o_D
        a_D = tl.load(p_D, mask=m_D, other=0.0).to(tl.float32)
        b_D = tl.load(p_D + HALF, mask=m_D, other=0.0).to(tl.float32)
        a_TD = (a_TD * factor_TD).to(dtype).to(tl.float32) * a_D[None, :]
        b_TD = (b_TD * factor_TD).to(dtype).to(tl.float32) * b_D[None, :]
    p_cos_TD = p_cos + token_T[:, None] * cos_stride + o_D[None, :]
    p_sin_TD = p_sin + token_T[:, None] * sin_stride + o_D[None, :]
    cos_a = tl.load(p_cos_TD, mask=m_TD, other=0.0).to(tl.float32)
    cos_b = tl.load(p_cos_TD + HALF, mask=m_TD, other=0.0).to(tl.float32)
    sin_a = tl.load(p_sin_TD, mask=m_TD, other=0.0).to(tl.float32)
    sin_b = tl.load(p_sin_TD + HALF, mask=m_TD, other=0.0).to(tl.float32)
    turned_a_TD = a_TD * cos_a - b_TD * sin_a
    turned_b_TD = b_TD * cos_b + a_TD * sin_b
    if is_query:
        p_T = q.memory + token_T * q.stride
        o_N = (head + o_H) * q.head_stride + o_D
        _store_halves(p_T, turned_a_TD, turned_b_TD, o_N, m_TD, HALF)
    else:
        p_T = k.memory + slot_T * k.stride
        o_N = (head - QUERY_HEADS + o_H) * k.head_stride + o_D
        _store_halves(p_T, turned_a_TD, turned_b_TD, o_N, m_TD, HALF)


@triton.jit
def _store_halves(
    p_T: tl.tensor,
    a_TD: tl.tensor,
    b_TD: tl.tensor,
    o_N: tl.tensor,
    m_TD: tl.tensor,
    HALF: tl.constexpr,
) -> None:
    p_TD = p_T[:, None] + o_N[None, :]
    tl.store(p_TD, a_TD.to(p_T.dtype.element_ty), mask=m_TD)
    tl.store(p_TD + HALF, b_TD.to(p_T.dtype.element_ty), mask=m_TD)
