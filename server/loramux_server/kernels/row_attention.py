"""Attention of one token of each request to what that request has seen, wherever it lies.

Legend: B requests, H heads, J key heads, L tokens that a request has seen, D key width, E value
width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Seen(NamedTuple):
    """What a request has seen."""

    k_JLD: torch.Tensor
    v_JLE: torch.Tensor
    bias_HL: torch.Tensor | None = None
    """What is added to scores, for each head or, [1, L], for all alike."""


def row_attention(q_BHD: torch.Tensor, seen: Sequence[Seen], scale: float) -> torch.Tensor:
    """Return what the token of each request sees.

    Args:
        q_BHD: Queries; each of the J key heads is that of H / J neighbours.
        seen: What each request has seen, its token among it where it sees itself.
        scale: Factor of scores.

    Returns:
        The output, [B, H, E].
    """
    rows = []
    for q_HD, (k_JLD, v_JLE, bias_HL) in zip(q_BHD, seen, strict=True):
        group = len(q_HD) // len(k_JLD)
        k_HLD, v_HLE = (x.repeat_interleave(group, dim=0) for x in (k_JLD, v_JLE))
        score_HL = torch.einsum("hd,hld->hl", q_HD, k_HLD) * scale
        if bias_HL is not None:
            score_HL = score_HL + bias_HL
        rows.append(torch.einsum("hl,hle->he", score_HL.softmax(-1), v_HLE))
    return torch.stack(rows)
