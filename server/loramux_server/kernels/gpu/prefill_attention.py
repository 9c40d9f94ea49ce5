"""Attention of any number of query tokens per request, in tiles.

A tile is a run of consecutive tokens of a request. A program takes a tile, for as many query heads
of one key and value head as fit its rows: keys and values are read once for all of them, and a
short chunk still fills the rows of a matmul. Rows are numbered through heads and tokens without
padding, so that few are wasted where the number of heads is no power of two.

Source: the rows follow "The anatomy of a Triton attention kernel" (arXiv 2511.11581).

Legend: T tokens of the batch, H query heads, J key and value heads, D key width, E value width, S
cache slots, R rows (one query head of one token each).
"""

import torch
import triton
import triton.language as tl

from loramux_server.kernels.attention import AttentionForm, paged_attention
from loramux_server.kernels.gpu.attend import (
    Blocks,
    attend,
    most_rows,
    padded,
    score_factors,
    sink_exponents,
)
from loramux_server.kernels.gpu.device_batch import DeviceBatch

_MOST_ROWS = 128
"""Rows that a program has registers for, unless its tile alone has more."""


def prefill_attention(
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    batch: DeviceBatch,
    form: AttentionForm,
    out_THE: torch.Tensor,
) -> None:
    """Write the attention output of the tokens of each tile to `out_THE`, and nothing else.

    Semantics, for a tile of tokens t0:t1: out[t0:t1] = paged_attention of q[t0:t1].
    """
    border = batch.query_start_B.tolist()
    tiles = zip(batch.tile_request_I.tolist(), batch.tile_start_I.tolist(), strict=True)
    for request, start in tiles:
        if request >= 0:
            end = min(start + batch.tile_size, border[request + 1])
            part = batch.part(request, start, end)
            out_THE[start:end] = paged_attention(q_THD[start:end], k_SJD, v_SJE, part, form)


def prefill_attention_triton(
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    batch: DeviceBatch,
    form: AttentionForm,
    out_THE: torch.Tensor,
    *,
    blocks: Blocks | None = None,
) -> None:
    """Implement `prefill_attention`; the last dimension of k, v and out must be contiguous.

    The launch depends on shapes alone: lengths are read on the device.
    """
    groups = q_THD.shape[1] // k_SJD.shape[1]
    key_width, value_width = k_SJD.shape[2], v_SJE.shape[2]
    most = most_rows(key_width, k_SJD.itemsize, _MOST_ROWS)
    heads = min(groups, max(1, most // batch.tile_size))
    rows = padded(batch.tile_size * heads)
    blocks = blocks or Blocks.fitting(k_SJD, v_SJE, rows)
    scale, bound = score_factors(form)
    _attend_tiles[len(batch.tile_request_I), k_SJD.shape[1] * triton.cdiv(groups, heads)](
        q_THD, q_THD.stride(), k_SJD, k_SJD.stride(), v_SJE, v_SJE.stride(),
        batch.query_start_B, batch.context_B, batch.table_BM, batch.table_BM.stride(0),
        batch.tile_request_I, batch.tile_start_I, scale, form.sinks_H, out_THE, out_THE.stride(),
        TILE_SIZE=batch.tile_size, GROUPS=groups, HEADS=heads, D=key_width, E=value_width,
        BLOCK_R=rows, BLOCK_D=padded(key_width), BLOCK_E=padded(value_width),
        BLOCK_C=blocks.context, BLOCK_SIZE=batch.block_size, WINDOW=form.window, BOUND=bound,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "p_query_start", "p_context", "p_table", "table_stride", "p_request", "p_start",
    ]
)  # fmt: skip
def _attend_tiles(
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
    p_request: tl.tensor,
    p_start: tl.tensor,
    scale: tl.tensor,
    p_sink: tl.tensor,
    p_out: tl.tensor,
    out_stride: tl.tuple,
    TILE_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BOUND: tl.constexpr,
) -> None:
    # Later tiles of a prompt have longer contexts: start them first, to balance the tail.
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    parts = tl.cdiv(GROUPS, HEADS)
    kv_head = tl.program_id(1) // parts
    in_group = tl.program_id(1) % parts * HEADS
    request = tl.load(p_request + i_tile)
    if request < 0:
        return
    start = tl.load(p_start + i_tile)
    left = tl.load(p_query_start + request + 1) - start
    count = tl.minimum(left, TILE_SIZE)
    position = tl.load(p_context + request) - left
    o_R = tl.arange(0, BLOCK_R)
    o_T = o_R // HEADS
    in_group_R = in_group + o_R % HEADS
    m_R = (o_T < count) & (in_group_R < GROUPS)
    token_R = (start + o_T).to(tl.int64)
    head_R = kv_head * GROUPS + in_group_R
    # Padding rows attend like the tile's last token, so that no row is fully masked.
    position_R = position + tl.minimum(o_T, count - 1)
    begin = position * 0
    if WINDOW:
        # Blocks start at multiples of BLOCK_C, so that results do not depend on the tiling.
        begin = tl.maximum(position - WINDOW + 1, 0) // BLOCK_C * BLOCK_C
    o_D = tl.arange(0, BLOCK_D)
    p_RD = p_q + token_R[:, None] * q_stride[0] + head_R[:, None] * q_stride[1]
    m_RD = m_R[:, None] & (o_D < D)[None, :]
    q_RD = tl.load(p_RD + o_D[None, :] * q_stride[2], mask=m_RD, other=0.0)
    sink_R = None
    if p_sink is not None:
        sink_R = sink_exponents(p_sink, head_R, m_R)
    sum_RE, sum_R, _ = attend(
        q_RD, sink_R, position_R,
        p_k + kv_head * k_stride[1], k_stride[0], p_v + kv_head * v_stride[1], v_stride[0],
        p_table + request.to(tl.int64) * table_stride, begin, position + count, scale,
        D, E, BLOCK_C, BLOCK_E, BLOCK_SIZE, WINDOW, BOUND,
    )  # fmt: skip
    o_E = tl.arange(0, BLOCK_E)
    out_RE = (sum_RE / sum_R[:, None]).to(p_out.dtype.element_ty)
    p_RE = p_out + token_R[:, None] * out_stride[0] + head_R[:, None] * out_stride[1]
    tl.store(p_RE + o_E[None, :], out_RE, mask=m_R[:, None] & (o_E < E)[None, :])
