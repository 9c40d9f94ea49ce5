"""The loop over a request's context that decode and prefill share.

Source: the online softmax of FlashAttention-2 (arXiv 2307.08691), with base-2 exponentials.

Legend: R rows (one query head of one token each), C tokens of a context block, D key width, E value
width, S cache slots, J key and value heads.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl

from loramux_server.kernels.attention import AttentionForm

_LOG2_E = math.log2(math.e)
_MOST_FLYING = 1 << 17
"""Most bytes of keys and values; with its other buffers a program then fits in 227 KiB."""
_MOST_ASKING = 1 << 15
"""Most bytes of queries; with two stages of keys and values they then fit in the 99 KiB of shared
memory that a program has on the smallest GPUs since Ampere."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration."""

    context: int = 64
    """Tokens per context block: a power of two, 16 or more."""
    num_warps: int = 4
    num_stages: int = 2

    @classmethod
    def fitting(cls, k_SJD: torch.Tensor, v_SJE: torch.Tensor, rows: int) -> Self:
        """Return blocks for programs of `rows` rows."""
        row_bytes = (k_SJD.shape[2] + v_SJE.shape[2]) * k_SJD.element_size()
        # Two stages fit in any GPU's shared memory, together with queries of `most_rows`.
        context = max(16, min(64, 2**15 // triton.next_power_of_2(row_bytes)))
        num_stages = 2 if context * row_bytes <= 2**15 else 1
        # More rows per warp would not fit its registers.
        return cls(context, num_warps=4 if rows <= 64 else 8, num_stages=num_stages)

    def fits(self, k_SJD: torch.Tensor, v_SJE: torch.Tensor) -> bool:
        """Return whether a program has shared memory for keys and values of this width and type."""
        token_bytes = (k_SJD.shape[2] + v_SJE.shape[2]) * k_SJD.element_size()
        return self.context * token_bytes <= _MOST_FLYING


def score_factors(form: AttentionForm) -> tuple[float, float]:
    """Return the `scale` and `BOUND` that turn scores of `form` into base-2 exponents."""
    if form.softcap:
        return form.scale / form.softcap, form.softcap * _LOG2_E
    return form.scale * _LOG2_E, 0.0


def padded(size: int) -> int:
    """Return `size` padded to a dimension that `tl.dot` accepts: a power of two, 16 or more."""
    return max(16, int(triton.next_power_of_2(size)))


def most_rows(width: int, item_bytes: int, most: int) -> int:
    """Return how many query rows fit a program: a power of two from 16 up to `most`.

    Args:
        width: Width of a key.
        item_bytes: Bytes per element.
        most: Rows that it has registers for; a power of two.
    """
    return max(16, min(most, _MOST_ASKING // (padded(width) * item_bytes)))


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """Return the hyperbolic tangent, which Triton's interpreter does not have."""
    power = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - power) / (1.0 + power)
    # Near 0 the difference loses precision by cancellation; the Taylor series is accurate there.
    x2 = x * x
    series = x * (1.0 - x2 * (1 / 3 - x2 * (2 / 15 - x2 * (17 / 315 - x2 * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -size, size))


@triton.jit
def sink_exponents(p_sink: tl.tensor, head_R: tl.tensor, m_R: tl.tensor) -> tl.tensor:
    """Return the sinks of heads as base-2 exponents, [R]; -inf where `m_R` is false."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    return tl.load(p_sink + head_R, mask=m_R, other=float("-inf")).to(tl.float32) * LOG2_E


@triton.jit
def attend(
    q_RD: tl.tensor,
    sink_R: tl.tensor,
    position_R: tl.tensor,
    p_k: tl.tensor,
    k_stride: tl.tensor,
    p_v: tl.tensor,
    v_stride: tl.tensor,
    p_table: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BOUND: tl.constexpr,
) -> tl.tuple:
    """Attend to positions `begin` to `end` of the request's context.

    `sink_R`, None or base-2 exponents, adds to each row one score without a value.

    Returns:
        The weighted sum of values, [R, E], to be divided by the sum of weights, [R]; and the
        maximum exponent m, [R]: both sums are scaled by 2**-m.
    """
    BLOCK_R: tl.constexpr = q_RD.shape[0]
    BLOCK_D: tl.constexpr = q_RD.shape[1]
    o_D = tl.arange(0, BLOCK_D)
    o_E = tl.arange(0, BLOCK_E)
    sum_RE = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    sum_R = tl.zeros((BLOCK_R,), tl.float32)
    max_R = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    if sink_R is not None:
        max_R = sink_R
        sum_R = tl.where(sink_R > float("-inf"), 1.0, 0.0)
    for first in range(begin, end, BLOCK_C):
        position_C = first + tl.arange(0, BLOCK_C)
        m_C = position_C < end
        block_C = tl.load(p_table + position_C // BLOCK_SIZE, mask=m_C, other=0)
        slot_C = block_C.to(tl.int64) * BLOCK_SIZE + position_C % BLOCK_SIZE
        p_DC = p_k + slot_C[None, :] * k_stride + o_D[:, None]
        k_DC = tl.load(p_DC, mask=m_C[None, :] & (o_D < D)[:, None], other=0.0)
        score_RC = tl.dot(q_RD, k_DC, input_precision="ieee") * scale
        if BOUND > 0:
            score_RC = BOUND * tanh(score_RC)
        m_RC = m_C[None, :] & (position_C[None, :] <= position_R[:, None])
        if WINDOW:
            m_RC = m_RC & (position_C[None, :] > position_R[:, None] - WINDOW)
        score_RC = tl.where(m_RC, score_RC, float("-inf"))
        next_R = tl.maximum(max_R, tl.max(score_RC, 1))
        # A row without a visible key so far has no maximum to subtract.
        base_R = tl.where(next_R == float("-inf"), 0.0, next_R)
        weight_RC = tl.exp2(score_RC - base_R[:, None])
        fade_R = tl.exp2(max_R - base_R)
        p_CE = p_v + slot_C[:, None] * v_stride + o_E[None, :]
        v_CE = tl.load(p_CE, mask=m_C[:, None] & (o_E < E)[None, :], other=0.0)
        sum_RE = sum_RE * fade_R[:, None]
        sum_RE = tl.dot(weight_RC.to(v_CE.dtype), v_CE, sum_RE, input_precision="ieee")
        sum_R = sum_R * fade_R + tl.sum(weight_RC, 1)
        max_R = next_R
    return sum_RE, sum_R, max_R
