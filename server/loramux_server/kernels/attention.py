"""Attention over a paged KV cache: its definition in plain torch.

Legend: T tokens of the batch, C tokens of one request's context, B requests, H query heads, J key
and value heads, D key width, E value width, S cache slots (one token each), M blocks per block
table.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from loramux_server.lora.segments import Int32


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the requests' tokens are, in the batch and in the KV cache."""

    query_start_B: Int32
    """B + 1 offsets of the requests' tokens in the batch."""
    context_B: Int32
    """Context length of each request, including its tokens in this batch."""
    table_BM: Int32
    """Block table of each request: one block per `block_size` tokens."""
    block_size: int
    slot_T: torch.Tensor
    """Cache slot of each token of the batch, int64."""
    bidirectional_T2: Int32 | None = None
    """Positions [first, second) that each token attends to in addition to the causal ones: those
    of its image, whose keys are in the cache by then. None where no token has any."""

    def context_slots(self, request: int) -> npt.NDArray[np.int64]:
        """Return the cache slot of each token of `request`'s context, in order."""
        length = int(self.context_B[request])
        blocks = self.table_BM[request, : -(-length // self.block_size)].astype(np.int64)
        slots = blocks[:, None] * self.block_size + np.arange(self.block_size)
        return slots.reshape(-1)[:length]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionForm:
    """How a layer turns scores into attention weights."""

    scale: float
    window: int = 0
    """Sliding window in tokens, the token itself included; 0 means full causal attention."""
    softcap: float = 0.0
    """Soft cap of the scores: softcap * tanh(score / softcap); 0 means none."""
    sinks_H: torch.Tensor | None = None
    """Attention sinks: one extra score per query head, without a value. They are neither scaled
    nor capped, and the window does not apply. The memory must stay: kernels keep its address."""


def write_cache(
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    k_TJD: torch.Tensor,
    v_TJE: torch.Tensor,
    batch: AttentionBatch,
) -> None:
    """Write the batch's keys and values to their cache slots."""
    k_SJD.index_copy_(0, batch.slot_T, k_TJD)
    v_SJE.index_copy_(0, batch.slot_T, v_TJE)


def paged_attention(
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    batch: AttentionBatch,
    form: AttentionForm,
) -> torch.Tensor:
    """Return the attention output of each token over its request's context, as [T, H, E].

    Semantics, for a token of request b at position p, with k and v the rows of b's slots:

        scores = form.scale * q . k[j]     for max(0, p - window + 1) <= j <= p
        out = softmax(softcap(scores)) @ v[j]

    Image tokens with bidirectional attention also attend to j from bidirectional[0] to
    bidirectional[1] - 1.

    With sinks, the softmax has one more score, that of the head; its weight is dropped.
    """
    out_THE = q_THD.new_empty(q_THD.shape[0], q_THD.shape[1], v_SJE.shape[2])
    for request in range(len(batch.context_B)):
        _attend_request(out_THE, q_THD, k_SJD, v_SJE, batch, form, request)
    return out_THE


def _attend_request(
    out_THE: torch.Tensor,
    q_THD: torch.Tensor,
    k_SJD: torch.Tensor,
    v_SJE: torch.Tensor,
    batch: AttentionBatch,
    form: AttentionForm,
    request: int,
) -> None:
    """Write the output of one request to its rows of `out_THE`; see `paged_attention`."""
    start, end = int(batch.query_start_B[request]), int(batch.query_start_B[request + 1])
    slots = torch.from_numpy(batch.context_slots(request)).to(q_THD.device)
    length, num_queries = len(slots), end - start
    groups = q_THD.shape[1] // k_SJD.shape[1]
    q_HQD = q_THD[start:end].transpose(0, 1)
    k_HCD = k_SJD[slots].transpose(0, 1).repeat_interleave(groups, dim=0)
    v_HCE = v_SJE[slots].transpose(0, 1).repeat_interleave(groups, dim=0)
    bidirectional_Q2 = None if batch.bidirectional_T2 is None else batch.bidirectional_T2[start:end]
    sees_all = num_queries == 1 and not form.window
    is_causal = num_queries == length and not form.window and bidirectional_Q2 is None
    mask_QC = None
    is_plain = not form.softcap and form.sinks_H is None
    if not (sees_all or is_causal) or not is_plain:
        mask_QC = _visible(length, num_queries, form.window, q_THD.device)
        if bidirectional_Q2 is not None:
            mask_QC |= _in_span(length, torch.from_numpy(bidirectional_Q2).to(q_THD.device))
    if mask_QC is not None and not is_plain:
        score_HQC = torch.matmul(q_HQD, k_HCD.transpose(1, 2)) * form.scale
        if form.softcap:
            score_HQC = form.softcap * torch.tanh(score_HQC / form.softcap)
        score_HQC = score_HQC.masked_fill(~mask_QC, float("-inf"))
        if form.sinks_H is not None:
            sink_HQ1 = form.sinks_H[:, None, None].expand(-1, num_queries, 1)
            score_HQC = torch.cat([score_HQC, sink_HQ1], dim=-1)
        weight_HQC = torch.softmax(score_HQC, dim=-1, dtype=torch.float32)[..., :length]
        out_HQE = torch.matmul(weight_HQC.to(q_THD.dtype), v_HCE)
    else:
        out_HQE = torch.nn.functional.scaled_dot_product_attention(
            q_HQD[None],
            k_HCD[None],
            v_HCE[None],
            attn_mask=mask_QC,
            is_causal=is_causal and mask_QC is None,
            scale=form.scale,
        )[0]
    out_THE[start:end] = out_HQE.transpose(0, 1)


def _visible(length: int, num_queries: int, window: int, device: torch.device) -> torch.Tensor:
    position_Q = torch.arange(length - num_queries, length, device=device)[:, None]
    position_C = torch.arange(length, device=device)[None]
    visible_QC = position_C <= position_Q
    if window:
        visible_QC &= position_C > position_Q - window
    return visible_QC


def _in_span(length: int, bidirectional_Q2: torch.Tensor) -> torch.Tensor:
    position_C = torch.arange(length, device=bidirectional_Q2.device)[None]
    return (position_C >= bidirectional_Q2[:, :1]) & (position_C < bidirectional_Q2[:, 1:])
