"""Sampling: inverse-CDF draws from the tokens that top-k, top-p and min-p keep.

Probabilities are integers, whose sums do not depend on the order of addition. So a row's token
depends neither on the other rows nor on whether the whole vocabulary was sorted or only its top
(`cpu/draw.py`).

Legend: R rows, V vocabulary size, by token id or most likely first.
"""

from dataclasses import dataclass

import torch

UNITS = 1 << 42
"""Integer weight of the likeliest token: the sum over two million tokens still fits 64 bits."""
NUM_PARAMETERS = 5
_MOST_LOGITS = 1 << 22
"""Logits processed at a time: temporaries take less than 100 bytes per logit."""
_CHUNK = 1024
"""Tokens per chunk of the cumulative sum: on a GPU a scan over long rows is slow."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Sampling parameters of a step's rows."""

    rows_R5: torch.Tensor
    """Parameters of each row, float64:

    - 1 / temperature; 0 takes the likeliest token;
    - top-k: number of tokens kept; 0 keeps all;
    - top-p: share of the remaining probability that the kept tokens must reach; 1 keeps all;
    - min-p as an offset: minimum logit minus greatest logit; -inf keeps all;
    - a random number in [0, 1).
    """
    is_cut: bool
    """Whether any row excludes tokens, which requires sorting."""


def draw(logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return the token of each row, int64; the likeliest one if its logit is not finite.

    A row that excludes no token is scanned by token id. Others are sorted, the likeliest first and
    of equal logits the lower token first. Shapes do not depend on values and nothing synchronizes
    with the host, so this can be captured in a CUDA graph. It moves about 90 bytes per logit, and
    300 if any row excludes tokens: only sorting the whole vocabulary is right for every top-p.

    Args:
        logits_RV: The logits, float32.
        likeliest_R: The token with the greatest logit of each row, the first of equal ones.
        draws: Sampling parameters of the rows, on the same device.
    """
    drawn = [
        _draw(logits_RV[part], likeliest_R[part], draws.rows_R5[part], is_cut=draws.is_cut)
        for part in parts(logits_RV)
    ]
    return torch.cat(drawn)


def parts(logits_RV: torch.Tensor) -> list[slice]:
    """Return the rows that are drawn at a time, so that memory for them is bounded."""
    num_rows = max(1, _MOST_LOGITS // logits_RV.shape[1])
    return [slice(first, first + num_rows) for first in range(0, len(logits_RV), num_rows)]


def _draw(
    logits_RV: torch.Tensor, likeliest_R: torch.Tensor, rows_R5: torch.Tensor, *, is_cut: bool
) -> torch.Tensor:
    inverse_R1, top_k_R1, top_p_R1, margin_R1, number_R1 = rows_R5[:, :, None].unbind(1)
    most_R1 = logits_RV.gather(1, likeliest_R[:, None]).double()
    token_RV = key_RV = None
    if is_cut:
        is_whole_R1 = (top_k_R1 < 1) & (top_p_R1 >= 1) & margin_R1.isneginf()
        # A stable sort keeps equal logits in token order.
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
    # Where logits are not finite, the search may run past the end.
    drawn_R1 = place_R1.clamp(max=weight_RV.shape[1] - 1)
    if token_RV is not None:
        drawn_R1 = token_RV.gather(1, drawn_R1)
    is_drawn_R1 = (inverse_R1 > 0) & most_R1.isfinite()
    return torch.where(is_drawn_R1, drawn_R1, likeliest_R[:, None])[:, 0]


def _cumulated(weight_RV: torch.Tensor) -> torch.Tensor:
    """Return the cumulative sum of the weights of each row, padded to whole chunks."""
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
    """Return how many tokens each row keeps, as [R, 1].

    Args:
        sum_RV: Cumulative weights; see `_cumulated`.
        key_RV: Negated logits, in ascending order.
        top_k_R1: As in `Draws`.
        top_p_R1: As in `Draws`.
        least_R1: The least logit that min-p keeps.
    """
    size = key_RV.shape[1]
    by_k_R1 = top_k_R1.masked_fill(top_k_R1 < 1, size).clamp(max=size).long()
    # The token that reaches top-p is kept, too.
    reached_R1 = (top_p_R1 * sum_RV.gather(1, by_k_R1 - 1)).ceil().long()
    by_p_R1 = (torch.searchsorted(sum_RV, reached_R1) + 1).masked_fill(top_p_R1 >= 1, size)
    by_ratio_R1 = torch.searchsorted(key_RV, -least_R1, right=True)
    return torch.minimum(torch.minimum(by_k_R1, by_p_R1), by_ratio_R1).clamp(min=1)
