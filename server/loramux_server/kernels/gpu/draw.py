"""Sampling with top-k, top-p and min-p without sorting the vocabulary.

The cut of top-k, the cut of top-p and the sampled token are each the token at which the likeliest
tokens together first reach a target, a count or a mass. Its logit is found by a 16-ary search over
the float's 32 bits: eight passes over the row. Counts and masses are integers, whose sums do not
depend on the order of addition, so the token is the one that `kernels/draw.py` defines.

Selecting by digits instead of sorting is radix select: Alabi et al., "Fast k-selection algorithms
for graphics processing units" (ACM JEA 17, 2012).

Legend: R rows, V vocabulary size, C chunks of a row, J parts of a search range.
"""

from dataclasses import dataclass

import torch
import triton

from loramux_server.kernels.draw import UNITS, Draws, parts
from loramux_server.kernels.gpu.draw_kernels import DIGITS, PARTS, narrow, pick, settle, weigh

_BITS = 32
"""Bits of a logit."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Configuration of the kernels; powers of two."""

    v: int = 4096
    """Tokens per program."""
    num_warps: int = 8


DEFAULT = Blocks()


def draw_triton(
    logits_RV: torch.Tensor,
    likeliest_R: torch.Tensor,
    draws: Draws,
    *,
    blocks: Blocks = DEFAULT,
) -> torch.Tensor:
    """Implement `loramux_server.kernels.draw.draw`.

    If any row excludes tokens, this takes 29 launches, and most read 12 bytes per logit.
    """
    drawn = [
        _Drawing(logits_RV[part], likeliest_R[part], draws.rows_R5[part], blocks).draw(
            is_cut=draws.is_cut
        )
        for part in parts(logits_RV)
    ]
    return torch.cat(drawn)


class _Drawing:
    """Owns the integer weights of the tokens of some rows."""

    def __init__(
        self,
        logits_RV: torch.Tensor,
        likeliest_R: torch.Tensor,
        rows_R5: torch.Tensor,
        blocks: Blocks,
    ) -> None:
        num_rows, size = logits_RV.shape
        self._logits_RV = logits_RV
        self._likeliest_R = likeliest_R
        self._rows_R5 = rows_R5.contiguous()
        self._blocks = blocks
        self._grid = num_rows, triton.cdiv(size, blocks.v)
        self._most_R = logits_RV.gather(1, likeliest_R[:, None])[:, 0]
        self._weight_RV = self._new(num_rows, size)

    def draw(self, *, is_cut: bool) -> torch.Tensor:
        """Return the token of each row; `is_cut` as in `Draws`."""
        inverse_R, top_k_R, top_p_R, margin_R, number_R = self._rows_R5.unbind(1)
        mass_RC, shown_RC = self._weigh()
        mass_R = mass_RC.sum(1)
        is_whole_R = (top_k_R < 1) & (top_p_R >= 1) & margin_R.isneginf()
        left_R = mass_R
        if is_cut:
            left_R = self._left(mass_R, shown_RC.sum(1))
            left_R = torch.where(is_whole_R, mass_R, left_R)
        unit_R = torch.minimum((number_R * left_R).long(), left_R - 1)
        key_R, part_RC, target_R = torch.zeros_like(mass_R), mass_RC, unit_R
        if is_cut:
            found = self._search((unit_R + 1).masked_fill(is_whole_R, 0), is_count=False)
            key_R = found.key_R
            # Of equal logits, the lower token comes first.
            part_RC = torch.where(is_whole_R[:, None], mass_RC, found.equal_RC)
            place_R = (unit_R - found.above_R) // found.weight_R.clamp(min=1)
            target_R = torch.where(is_whole_R, unit_R, place_R)
        is_drawn_R = (inverse_R > 0) & self._most_R.isfinite()
        token_R = self._pick(is_whole_R, key_R, part_RC, target_R)
        return torch.where(is_drawn_R, token_R, self._likeliest_R)

    def _left(self, mass_R: torch.Tensor, shown_R: torch.Tensor) -> torch.Tensor:
        """Return the mass of the tokens that top-k, top-p and min-p keep.

        Args:
            mass_R: Mass of all tokens.
            shown_R: Mass of the tokens that min-p keeps.
        """
        size = self._logits_RV.shape[1]
        _, top_k_R, top_p_R, _, _ = self._rows_R5.unbind(1)
        count_R = top_k_R.masked_fill(top_k_R >= size, 0).long()  # 0: no top-k
        found = self._search(count_R, is_count=True)
        first_R = found.mass_R + (count_R - found.above_R) * found.weight_R
        by_k_R = torch.where(count_R > 0, first_R, mass_R)
        # The token that reaches top-p is kept, too.
        reached_R = (top_p_R * by_k_R).ceil().long().clamp(min=1).masked_fill(top_p_R >= 1, 0)
        found = self._search(reached_R, is_count=False)
        weight_R = found.weight_R.clamp(min=1)
        more_R = (reached_R - found.above_R + weight_R - 1) // weight_R
        by_p_R = torch.where(reached_R > 0, found.above_R + more_R * weight_R, mass_R)
        return torch.minimum(torch.minimum(by_k_R, by_p_R), shown_R).clamp(min=UNITS)

    def _weigh(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the weights, and return each chunk's mass: of all tokens, of those min-p keeps."""
        mass_RC, shown_RC = self._new(*self._grid), self._new(*self._grid)
        weigh[self._grid](
            self._logits_RV, self._logits_RV.stride(0), self._most_R, self._rows_R5,
            self._weight_RV, mass_RC, shown_RC,
            SIZE=self._size, UNITS=UNITS, BLOCK_V=self._blocks.v,
            num_warps=self._blocks.num_warps,
        )  # fmt: skip
        return mass_RC, shown_RC

    def _search(self, target_R: torch.Tensor, *, is_count: bool) -> "_Found":
        """Find the token at which the likeliest tokens together reach a target.

        Args:
            target_R: The target; rows with 0 are skipped.
            is_count: Whether the target is a count; otherwise a mass.

        Returns:
            Where each row reaches its target; undefined for skipped rows.
        """
        num_rows, num_chunks = self._grid
        least_R = torch.full_like(target_R, -(1 << (_BITS - 1)))
        state_R3 = torch.stack([least_R, torch.zeros_like(target_R), target_R], dim=1)
        sum_RCJ = self._new(num_rows, num_chunks, PARTS.value)
        options = {
            "SIZE": self._size,
            "IS_COUNT": is_count,
            "BLOCK_V": self._blocks.v,
            "NUM_CHUNKS": num_chunks,
            "BLOCK_C": triton.next_power_of_2(num_chunks),
            "num_warps": self._blocks.num_warps,
        }
        given = (self._logits_RV, self._logits_RV.stride(0), self._weight_RV)
        for bits in range(_BITS - DIGITS.value, -1, -DIGITS.value):
            is_first = bits == _BITS - DIGITS.value
            next_R3, next_RCJ = torch.empty_like(state_R3), torch.empty_like(sum_RCJ)
            narrow[self._grid](
                *given, state_R3, sum_RCJ, next_R3, next_RCJ,
                bits=bits, IS_FIRST=is_first, **options,
            )  # fmt: skip
            state_R3, sum_RCJ = next_R3, next_RCJ
        end_R3, found_RC3 = torch.empty_like(state_R3), self._new(num_rows, num_chunks, 3)
        settle[self._grid](
            *given, state_R3, sum_RCJ, end_R3, found_RC3,
            bits=-DIGITS.value, IS_FIRST=False, **options,
        )  # fmt: skip
        key_R, above_R, _ = end_R3.unbind(1)
        mass_RC, weight_RC, equal_RC = found_RC3.unbind(2)
        return _Found(key_R, above_R, mass_RC.sum(1), weight_RC.amax(1), equal_RC)

    def _pick(
        self,
        is_whole_R: torch.Tensor,
        key_R: torch.Tensor,
        part_RC: torch.Tensor,
        target_R: torch.Tensor,
    ) -> torch.Tensor:
        """Return the token of each row at which amounts, added up by token id, exceed a target.

        Args:
            is_whole_R: Whether a token's amount is its weight; otherwise it is 1 with the row's
                key, else 0.
            key_R: The keys.
            part_RC: Amount of each chunk.
            target_R: The targets.
        """
        token_R = self._likeliest_R.clone()
        before_RC = part_RC.cumsum(1) - part_RC
        pick[self._grid](
            self._logits_RV, self._logits_RV.stride(0), self._weight_RV,
            is_whole_R, key_R.contiguous(), before_RC.contiguous(), part_RC.contiguous(), target_R,
            token_R,
            SIZE=self._size, BLOCK_V=self._blocks.v, num_warps=self._blocks.num_warps,
        )  # fmt: skip
        return token_R

    @property
    def _size(self) -> int:
        return self._logits_RV.shape[1]

    def _new(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device=self._logits_RV.device)


@dataclass(frozen=True, slots=True)
class _Found:
    """The token at which the likeliest tokens together reach a target; all int64."""

    key_R: torch.Tensor
    """Its key; see `draw_kernels.key`."""
    above_R: torch.Tensor
    """Count or mass of the tokens with greater keys."""
    mass_R: torch.Tensor
    """Mass of these tokens."""
    weight_R: torch.Tensor
    """Its weight."""
    equal_RC: torch.Tensor
    """Tokens of each chunk with its key."""
