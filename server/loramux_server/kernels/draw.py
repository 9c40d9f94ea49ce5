"""Drawing tokens: where a random number falls among those that top-k, top-p and min-p leave.

How likely a token is counts in whole units. Sums of those are the same in whatever order they are
added up, so a row's token does not depend on its neighbours, nor on whether all of the vocabulary
was put in order or only its beginning (`cpu/draw.py`).

Legend: R rows, V tokens of the vocabulary, in their own order or with the likeliest first.
"""

from dataclasses import dataclass

import torch

UNITS = 1 << 42
"""What the likeliest token weighs: two million of them are still a number of 64 bits."""
NUM_PARAMETERS = 5
_MOST_LOGITS = 1 << 22
"""Logits at a time: what is made of them takes less than 100 bytes each."""
_CHUNK = 1024
"""Tokens that are added up one after the other. A GPU adds up long rows slowly."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How the tokens of a step's rows are drawn."""

    rows_R5: torch.Tensor
    """What each row asks for, float64:

    - 1 / temperature; 0 takes the likeliest token;
    - top-k: how many of the likeliest tokens are left; 0 means all;
    - top-p: what part of those the fewest have that are left then; 1 leaves all;
    - for min-p, how far from the greatest logit those are that are left; -inf leaves all;
    - a random number in [0, 1).
    """
    is_cut: bool
    """Whether any row leaves tokens out, so that they have to be put in order."""


def draw(logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return the token of each row, int64; the likeliest one also where its logit is not finite.

    A row that leaves no token out has them in their own order, another one the likeliest first, and
    of equal ones the lower. Shapes depend on no value and the host is not asked, so a CUDA graph
    can hold this. It moves some 90 bytes for each logit, and 300 if a row is cut: only a sort of
    the whole vocabulary is right for every top-p.

    Args:
        logits_RV: The logits, float32.
        likeliest_R: The token of each row with the greatest, the first of equal ones.
        draws: What the rows ask for, on the same device.
    """
    num_rows = max(1, _MOST_LOGITS // logits_RV.shape[1])
    parts = [slice(first, first + num_rows) for first in range(0, len(logits_RV), num_rows)]
    drawn = [
        _draw(logits_RV[part], likeliest_R[part], draws.rows_R5[part], is_cut=draws.is_cut)
        for part in parts
    ]
    return torch.cat(drawn)


def _draw(
    logits_RV: torch.Tensor, likeliest_R: torch.Tensor, rows_R5: torch.Tensor, *, is_cut: bool
) -> torch.Tensor:
    inverse_R1, top_k_R1, top_p_R1, margin_R1, number_R1 = rows_R5[:, :, None].unbind(1)
    most_R1 = logits_RV.gather(1, likeliest_R[:, None]).double()
    token_RV = key_RV = None
    if is_cut:
        is_whole_R1 = (top_k_R1 < 1) & (top_p_R1 >= 1) & margin_R1.isneginf()
        # Equal keys keep the order of tokens.
        key_RV, token_RV = (-logits_RV).masked_fill_(is_whole_R1, 0.0).sort(dim=-1, stable=True)
        logits_RV = torch.where(is_whole_R1, logits_RV, -key_RV)
    weight_RV = (logits_RV - most_R1).mul_(inverse_R1).exp_().mul_(UNITS).long()
    sum_RV = _cumulated(weight_RV)
    mass_R1 = sum_RV[:, -1:]
    if key_RV is not None:
        least_R1 = (most_R1 + margin_R1).float()
        left_R1 = _num_left(sum_RV, key_RV, top_k_R1, top_p_R1, least_R1)
        mass_R1 = sum_RV.gather(1, left_R1 - 1)
    unit_R1 = torch.minimum((number_R1 * mass_R1).long(), mass_R1 - 1)
    place_R1 = torch.searchsorted(sum_RV, unit_R1, right=True)
    # Where logits are not finite, sums are nothing to be found in.
    drawn_R1 = place_R1.clamp(max=weight_RV.shape[1] - 1)
    if token_RV is not None:
        drawn_R1 = token_RV.gather(1, drawn_R1)
    is_drawn_R1 = (inverse_R1 > 0) & most_R1.isfinite()
    return torch.where(is_drawn_R1, drawn_R1, likeliest_R[:, None])[:, 0]


def _cumulated(weight_RV: torch.Tensor) -> torch.Tensor:
    """Return what tokens weigh, each together with those before it, filled up to whole chunks."""
    num_rows, size = weight_RV.shape
    weight_RCV = torch.nn.functional.pad(weight_RV, (0, -size % _CHUNK)).view(num_rows, -1, _CHUNK)
    sum_RCV = weight_RCV.cumsum(-1)
    chunk_RC1 = sum_RCV[..., -1:]
    return sum_RCV.add_(chunk_RC1.cumsum(1) - chunk_RC1).view(num_rows, -1)


def _num_left(
    sum_RV: torch.Tensor,
    key_RV: torch.Tensor,
    top_k_R1: torch.Tensor,
    top_p_R1: torch.Tensor,
    least_R1: torch.Tensor,
) -> torch.Tensor:
    """Return how many tokens of each row are left, as [R, 1].

    Args:
        sum_RV: As `_cumulated` gives it.
        key_RV: Their logits, negated, which ascend.
        top_k_R1: As in `Draws`.
        top_p_R1: As in `Draws`.
        least_R1: The least logit that min-p leaves.
    """
    size = key_RV.shape[1]
    by_k_R1 = top_k_R1.masked_fill(top_k_R1 < 1, size).clamp(max=size).long()
    # The token with which top-p is reached is left, too.
    reached_R1 = (top_p_R1 * sum_RV.gather(1, by_k_R1 - 1)).ceil().long()
    by_p_R1 = (torch.searchsorted(sum_RV, reached_R1) + 1).masked_fill(top_p_R1 >= 1, size)
    by_ratio_R1 = torch.searchsorted(key_RV, -least_R1, right=True)
    return torch.minimum(torch.minimum(by_k_R1, by_p_R1), by_ratio_R1).clamp(min=1)
