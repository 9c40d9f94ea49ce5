"""Attention of one token per request to that request's keys and values, wherever they are stored.

Legend: B requests, H heads, J key heads, L tokens of a request's context, D key width, E value
width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Context(NamedTuple):
    """Keys and values of a request's context."""

    k_JLD: torch.Tensor
    v_JLE: torch.Tensor
    bias_HL: torch.Tensor | None = None
    """Added to the scores, per head or, as [1, L], for all heads."""


def row_attention(q_BHD: torch.Tensor, contexts: Sequence[Context], scale: float) -> torch.Tensor:
    """Return the attention output of each request's token.

    Args:
        q_BHD: Queries; each key head serves H / J consecutive query heads.
        contexts: Context of each request, including its token if that attends to itself.
        scale: Factor of the scores.

    Returns:
        The output, [B, H, E].
    """
    rows = []
    for q_HD, (k_JLD, v_JLE, bias_HL) in zip(q_BHD, contexts, strict=True):
        group = len(q_HD) // len(k_JLD)
        k_HLD, v_HLE = (x.repeat_interleave(group, dim=0) for x in (k_JLD, v_JLE))
        score_HL = torch.einsum("hd,hld->hl", q_HD, k_HLD) * scale
        if bias_HL is not None:
            score_HL = score_HL + bias_HL
        rows.append(torch.einsum("hl,hle->he", score_HL.softmax(-1), v_HLE))
    return torch.stack(rows)
