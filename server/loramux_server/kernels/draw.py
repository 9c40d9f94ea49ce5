"""Drawing tokens: on which one a random number falls, among those that top-k, top-p and min-p leave.

How likely a token is counts in whole units. Sums of those are the same in whatever order they are
added up, so a row's token does not depend on its neighbours, nor on whether all of the vocabulary
was put in order or only its beginning (`draw_cpu.py`).

Legend: R rows, V tokens of the vocabulary, K tokens of it in order, or all.
"""

from dataclasses import dataclass

import torch

UNITS = 1 << 42
"""What the likeliest token weighs: two million of them are still a number of 64 bits."""
NUM_PARAMETERS = 5
_MOST_LOGITS = 1 << 21
"""Logits at a time: what is made of them takes less than 100 bytes each, and fits a cache."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How the tokens of a step's rows are drawn."""

    rows_R5: torch.Tensor
    """What each row asks for, float64, in the order of the properties below."""
    is_cut: bool
    """Whether any row leaves tokens out, so that they have to be put in order."""

    @property
    def inverse_R1(self) -> torch.Tensor:
        """1 / temperature; 0 takes the likeliest token."""
        return self.rows_R5[:, 0:1]

    @property
    def top_k_R1(self) -> torch.Tensor:
        """How many of the likeliest tokens are left; 0 means all."""
        return self.rows_R5[:, 1:2]

    @property
    def top_p_R1(self) -> torch.Tensor:
        """What part of all the fewest tokens have that are left; 1 leaves all."""
        return self.rows_R5[:, 2:3]

    @property
    def margin_R1(self) -> torch.Tensor:
        """How far the logits of tokens that are left may be from the greatest: -inf or more."""
        return self.rows_R5[:, 3:4]

    @property
    def number_R1(self) -> torch.Tensor:
        """A random number in [0, 1)."""
        return self.rows_R5[:, 4:5]


def draw(logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return the token of each row, int64; the likeliest one also where its logit is not finite.

    Tokens are in their own order if a row leaves none out, else the likeliest come first, and of
    equal ones the lower. Shapes depend on no value and the host is not asked, so a CUDA graph can
    hold this. A logit costs some 90 bytes of traffic, and 300 where rows are cut: a sort of the
    whole vocabulary is right for every top-p, the first thousand tokens are not.

    Args:
        logits_RV: The logits, float32.
        likeliest_R: The token of each row with the greatest, the first of equal ones.
        draws: What the rows ask for, on the same device.
    """
    num_rows = max(1, _MOST_LOGITS // logits_RV.shape[1])
    parts = zip(
        logits_RV.split(num_rows),
        likeliest_R.split(num_rows),
        draws.rows_R5.split(num_rows),
        strict=True,
    )
    return torch.cat([_draw(*part, is_cut=draws.is_cut) for part in parts])


def _draw(
    logits_RV: torch.Tensor, likeliest_R: torch.Tensor, rows_R5: torch.Tensor, *, is_cut: bool
) -> torch.Tensor:
    draws = Draws(rows_R5, is_cut)
    most_R1 = greatest(logits_RV, likeliest_R)
    if is_cut:
        is_whole_R1 = (
            (draws.top_k_R1 < 1) & (draws.top_p_R1 >= 1) & draws.margin_R1.isneginf()
        )
        # Equal keys keep the order of tokens.
        key_RV = logits_RV.neg().masked_fill_(is_whole_R1, 0.0)
        key_RV, token_RV = key_RV.sort(dim=-1, stable=True)
        weight_RV = weigh(torch.where(is_whole_R1, logits_RV, -key_RV), most_R1, draws)
        place_R1 = cut_place(weight_RV.cumsum(-1), key_RV, most_R1, draws)
        drawn_R1 = token_RV.gather(1, place_R1)
    else:
        drawn_R1 = whole_place(weigh(logits_RV, most_R1, draws).cumsum(-1), draws)
    is_drawn_R1 = (draws.inverse_R1 > 0) & most_R1.isfinite()
    return torch.where(is_drawn_R1, drawn_R1, likeliest_R[:, None])[:, 0]


def greatest(logits_RV: torch.Tensor, likeliest_R: torch.Tensor) -> torch.Tensor:
    """Return the logit of the likeliest token of each row, float64, as [R, 1]."""
    return logits_RV.gather(1, likeliest_R[:, None]).double()


def weigh(logits_RK: torch.Tensor, most_R1: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return how likely each token is beside the likeliest one, in units, int64."""
    part_RK = (logits_RK - most_R1).mul_(draws.inverse_R1).exp_()
    return part_RK.mul_(UNITS).long()


def lowest(most_R1: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return the least logit that min-p leaves, float32, as [R, 1]."""
    return (most_R1 + draws.margin_R1).float()


def cut_place(
    sum_RK: torch.Tensor,
    key_RK: torch.Tensor,
    most_R1: torch.Tensor,
    draws: Draws,
    total_R1: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the place of each row's token among those that come first, as [R, 1].

    Args:
        sum_RK: What tokens weigh, each together with those before it.
        key_RK: Their logits, negated, which ascend.
        most_R1: The greatest logits.
        draws: What the rows ask for.
        total_R1: What those weigh of which top-p takes its part, where more than `sum_RK` has.
    """
    size = sum_RK.shape[1]
    top_k_R1 = draws.top_k_R1.masked_fill(draws.top_k_R1 < 1, size).clamp(max=size).long()
    if total_R1 is None:
        total_R1 = sum_RK.gather(1, top_k_R1 - 1)
    # The token with which top-p is reached is left, too.
    reached_R1 = (draws.top_p_R1 * total_R1).ceil().long()
    top_p_R1 = torch.searchsorted(sum_RK, reached_R1) + 1
    top_p_R1 = top_p_R1.masked_fill(draws.top_p_R1 >= 1, size)
    min_p_R1 = torch.searchsorted(key_RK, -lowest(most_R1, draws), right=True)
    left_R1 = torch.minimum(torch.minimum(top_k_R1, top_p_R1), min_p_R1).clamp(min=1)
    return _place(sum_RK, sum_RK.gather(1, left_R1 - 1), draws)


def whole_place(sum_RV: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return each row's token where none is left out, as [R, 1]; `sum_RV` as in `cut_place`."""
    return _place(sum_RV, sum_RV[:, -1:], draws)


def _place(sum_RK: torch.Tensor, mass_R1: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return on which token the random number falls, if those that are left weigh `mass_R1`."""
    unit_R1 = torch.minimum((draws.number_R1 * mass_R1).long(), mass_R1 - 1)
    # Where logits are not finite, sums are nothing to be found in.
    return torch.searchsorted(sum_RK, unit_R1, right=True).clamp(max=sum_RK.shape[1] - 1)
