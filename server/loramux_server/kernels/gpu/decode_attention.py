"""Attention of one query token per request, with the context split among programs (split-KV).

Every program takes one share of a request's context for all query heads of one key and value head,
so that keys and values are read once. The program that finishes last combines the shares.

Source: Flash-Decoding (Dao et al., 2023) for the shares.

Legend: B requests, T tokens of the batch, H query heads, J key and value heads, D key width, E
value width, S cache slots, P shares, R rows (query heads of one key and value head).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels.attention import AttentionForm, paged_attention
from loramux_server.kernels.gpu.attend import Blocks, attend, padded, score_factors, sink_exponents
from loramux_server.kernels.gpu.dependent_launch import launch_options, wait_for_predecessor
from loramux_server.kernels.gpu.device_batch import DeviceBatch


@dataclass(frozen=True, slots=True)
class DecodeBlocks(Blocks):
    """Launch configuration, with the split of the context among programs."""

    least_share: int = 256
    """Minimum tokens of a share, except of a request's last; a power of two."""


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Partial results of the shares until they are combined; float32.

    Allocated once: each launch resets it for the next, and consecutive steps may share it.
    """

    out_BHPE: torch.Tensor
    weight_BHP: torch.Tensor
    """Base-2 logarithm of the sum of a share's weights."""
    arrived_BH: torch.Tensor
    """Finished shares, int32; 0 before and after a launch. One counter is used per key head."""

    @staticmethod
    def make(
        num_requests: int, num_heads: int, value_width: int, num_shares: int, device: torch.device
    ) -> "DecodeScratch":
        """Allocate for `num_requests` requests, with contexts in up to `num_shares` shares.

        With the same `num_shares` and blocks for batches of every size, a row's result is
        bit-identical for every size.
        """
        size = (num_requests, num_heads, num_shares)
        return DecodeScratch(
            torch.empty(*size, value_width, dtype=torch.float32, device=device),
            torch.empty(size, dtype=torch.float32, device=device),
            torch.zeros(size[:2], dtype=torch.int32, device=device),
        )


def decode_attention(
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    batch: DeviceBatch,
    form: AttentionForm,
    out_THE: torch.Tensor,
    scratch: DecodeScratch,
) -> None:
    """Write the attention output of each request with a single token to `out_THE`.

    Semantics, for a request whose one token is t: out[t] = paged_attention of q[t]. Nothing is
    written for other requests, nor for one with a context of 0. Only the kernel uses `scratch`.
    """
    border = batch.query_start_B.tolist()
    for request, context in enumerate(batch.context_B.tolist()):
        start, end = border[request : request + 2]
        if context and end - start == 1:
            part = batch.part(request, start, end)
            out_THE[start:end] = paged_attention(q_THD[start:end], k_SJD, v_SJE, part, form)


def decode_attention_triton(
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    batch: DeviceBatch,
    form: AttentionForm,
    out_THE: torch.Tensor,
    scratch: DecodeScratch,
    *,
    blocks: DecodeBlocks | None = None,
) -> None:
    """Implement `decode_attention`; the last dimension of k, v and out must be contiguous.

    The launch depends on shapes alone: lengths are read on the device.
    """
    num_requests = len(batch.context_B)
    num_heads, kv_heads = q_THD.shape[1], k_SJD.shape[1]
    key_width, value_width = k_SJD.shape[2], v_SJE.shape[2]
    rows = padded(num_heads // kv_heads)
    if blocks is None or not blocks.fits(k_SJD, v_SJE):  # a plan is tuned for one model
        blocks = DecodeBlocks.fitting(k_SJD, v_SJE, rows)
    num_shares = scratch.weight_BHP.shape[2]
    scale, bound = score_factors(form)
    _attend_shares[num_requests, kv_heads, num_shares](
        q_THD, q_THD.stride(), k_SJD, k_SJD.stride(), v_SJE, v_SJE.stride(),
        batch.query_start_B, batch.context_B, batch.table_BM, batch.table_BM.stride(0), scale,
        form.sinks_H, out_THE, out_THE.stride(),
        scratch.out_BHPE, scratch.weight_BHP, scratch.arrived_BH,
        GROUPS=num_heads // kv_heads, D=key_width, E=value_width, BLOCK_R=rows,
        BLOCK_D=padded(key_width), BLOCK_E=padded(value_width), BLOCK_C=blocks.context,
        BLOCK_SIZE=batch.block_size, WINDOW=form.window, BOUND=bound, SHARES=num_shares,
        BLOCK_P=triton.next_power_of_2(num_shares), LEAST=blocks.least_share,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        **launch_options(out_THE.device, None),
    )  # fmt: skip


@triton.jit
def _shares(
    context: tl.tensor,
    WINDOW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SHARES: tl.constexpr,
    LEAST: tl.constexpr,
) -> tl.tuple:
    """Return the begin of a context's first share, and the length of all shares but the last."""
    begin = context * 0
    if WINDOW:
        begin = tl.maximum(context - WINDOW, 0) // BLOCK_C * BLOCK_C
    length = tl.cdiv(tl.cdiv(context - begin, BLOCK_C), SHARES) * BLOCK_C
    return begin, tl.maximum(length, LEAST)


@triton.jit(do_not_specialize=["p_query_start", "p_context", "p_table", "table_stride"])
def _attend_shares(
    p_q: tl.tensor,
    q_stride: tl.tuple,
    p_k: tl.tensor,
    k_stride: tl.tuple,
    p_v: tl.tensor,
    v_stride: tl.tuple,
    p_query_start: tl.tensor,
    p_context: tl.tensor,
    p_table: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    p_sink: tl.tensor,
    p_out: tl.tensor,
    out_stride: tl.tuple,
    p_share: tl.tensor,
    p_weight: tl.tensor,
    p_arrived: tl.tensor,
    GROUPS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BOUND: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LEAST: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    request, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(p_context + request)
    token = tl.load(p_query_start + request)
    end = tl.load(p_query_start + request + 1)
    wait_for_predecessor(IS_DEPENDENT)
    if (context == 0) | (end - token != 1):
        return
    begin, length = _shares(context, WINDOW, BLOCK_C, SHARES, LEAST)
    num_shares = tl.cdiv(context - begin, length)
    if share >= num_shares:
        return
    begin += share * length
    o_R = tl.arange(0, BLOCK_R)
    m_R = o_R < GROUPS
    head_R = kv_head * GROUPS + o_R
    o_D = tl.arange(0, BLOCK_D)
    p_RD = p_q + token.to(tl.int64) * q_stride[0] + head_R[:, None] * q_stride[1]
    m_RD = m_R[:, None] & (o_D < D)[None, :]
    q_RD = tl.load(p_RD + o_D[None, :] * q_stride[2], mask=m_RD, other=0.0)
    sink_R = None
    if p_sink is not None:  # counted in the first share only
        share_R = tl.zeros((BLOCK_R,), tl.int32) + share
        sink_R = sink_exponents(p_sink, head_R, m_R & (share_R == 0))
    sum_RE, sum_R, max_R = attend(
        q_RD, sink_R, tl.full((BLOCK_R,), 0, tl.int32) + (context - 1),
        p_k + kv_head * k_stride[1], k_stride[0], p_v + kv_head * v_stride[1], v_stride[0],
        p_table + request.to(tl.int64) * table_stride,
        begin, tl.minimum(begin + length, context), scale,
        D, E, BLOCK_C, BLOCK_E, BLOCK_SIZE, WINDOW, BOUND,
    )  # fmt: skip
    o_E = tl.arange(0, BLOCK_E)
    out_RE = sum_RE / sum_R[:, None]
    m_RE = m_R[:, None] & (o_E < E)[None, :]
    if (SHARES > 1) and (num_shares > 1):
        num_heads = tl.num_programs(1) * GROUPS
        at_R = (request.to(tl.int64) * num_heads + head_R) * SHARES
        p_RE = p_share + at_R[:, None] * E + o_E[None, :]
        tl.store(p_RE + share * E, out_RE, mask=m_RE)
        tl.store(p_weight + at_R + share, max_R + tl.log2(sum_R), mask=m_R)
        # All threads must have stored before one of them increments the counter.
        tl.debug_barrier()
        p_arrived += request * num_heads + kv_head * GROUPS
        if tl.atomic_add(p_arrived, 1, sem="acq_rel", scope="gpu") < num_shares - 1:
            return
        tl.store(p_arrived, 0)
        # Other programs' results are in L2: `.cg` bypasses L1.
        o_P = tl.arange(0, BLOCK_P)
        m_RP = m_R[:, None] & (o_P < num_shares)[None, :]
        p_RP = p_weight + at_R[:, None] + o_P[None, :]
        weight_RP = tl.load(p_RP, mask=m_RP, other=float("-inf"), cache_modifier=".cg")
        # Padding rows must not become NaN.
        most_R = tl.where(m_R, tl.max(weight_RP, 1), 0.0)
        weight_RP = tl.exp2(weight_RP - most_R[:, None])
        all_R = tl.where(m_R, tl.sum(weight_RP, 1), 1.0)
        out_RE = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
        for other in tl.static_range(SHARES):
            weight_R = tl.sum(tl.where(o_P[None, :] == other, weight_RP, 0.0), 1) / all_R
            m_other = m_RE & (tl.full((1, 1), other, tl.int32) < num_shares)
            share_RE = tl.load(p_RE + other * E, mask=m_other, other=0.0, cache_modifier=".cg")
            out_RE += share_RE * weight_R[:, None]
    p_RE = p_out + token.to(tl.int64) * out_stride[0] + head_R[:, None] * out_stride[1]
    tl.store(p_RE + o_E[None, :], out_RE.to(p_out.dtype.element_ty), mask=m_RE)
