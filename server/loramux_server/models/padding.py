"""Texts that an encoder reads at once, side by side, with padding.

One text takes as many kernel launches as several, and on a GPU these dominate. Padding is masked
from attention and left out of linear layers.

Legend: B texts, L tokens of the longest, T tokens of all, N positions with padding (B * L).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_POSITIONS = 1 << 14
"""Limit of positions, including padding, of texts that are read at once."""
MAX_PAIRS = 1 << 22
"""Limit of pairs of positions within them: some models' attention has a number for each pair and
head."""
_FREE_PADDING = 1 << 10
"""Padding that is always accepted: it costs less than a separate forward."""


@dataclass(frozen=True, slots=True)
class PaddedLayout:
    """Where the tokens of texts that are side by side are."""

    token_T: torch.Tensor
    """Indices of the tokens in the batch, text by text; int64."""
    position_T: torch.Tensor
    """Their positions in the padded layout, likewise."""
    lengths: tuple[int, ...]
    """Tokens of each text."""

    @staticmethod
    def of(spans: Sequence[tuple[int, int]], device: torch.device) -> "PaddedLayout":
        """Return those of the texts with these (start, end) spans."""
        lengths = tuple(end - start for start, end in spans)
        width = max(lengths)
        token_T = torch.cat([torch.arange(start, end) for start, end in spans])
        position_T = torch.cat(
            [torch.arange(length) + text * width for text, length in enumerate(lengths)]
        )
        return PaddedLayout(token_T.to(device), position_T.to(device), lengths)

    def __len__(self) -> int:
        return len(self.token_T)

    @property
    def num_positions(self) -> int:
        """Number of positions, including padding."""
        return len(self.lengths) * max(self.lengths)

    @property
    def is_full(self) -> bool:
        """Whether there is no padding."""
        return len(self) == self.num_positions

    def without_padding(self, x_NK: torch.Tensor) -> torch.Tensor:
        """Return the rows without padding, [T, K]."""
        return x_NK if self.is_full else x_NK.index_select(0, self.position_T)

    def pad(self, y_TN: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Return the rows in the padded layout, with `fill` as padding."""
        if self.is_full:
            return y_TN
        padded = y_TN.new_full((self.num_positions, *y_TN.shape[1:]), fill)
        return padded.index_copy_(0, self.position_T, y_TN)

    def pad_tokens(self, token_T: torch.Tensor, fill: int) -> torch.Tensor:
        """Return the texts padded to [B, L]; `token_T` are all tokens of the batch."""
        return self.pad(token_T.index_select(0, self.token_T), fill).view(len(self.lengths), -1)

    def attention_mask(self) -> torch.Tensor:
        """Return the attention mask, [B, L], int64: 1 for tokens, 0 for padding."""
        return self.pad(torch.ones_like(self.token_T)).view(len(self.lengths), -1)


def group_texts(lengths: Sequence[int], is_alone: Sequence[bool]) -> list[list[int]]:
    """Group texts that are read at once; return the indices of the texts of each group.

    Args:
        lengths: Tokens of each text.
        is_alone: Whether each has to be read on its own.
    """
    groups = [[number] for number, alone in enumerate(is_alone) if alone]
    others = (number for number, alone in enumerate(is_alone) if not alone)
    group: list[int] = []
    num_tokens = 0
    for number in sorted(others, key=lambda one: -lengths[one]):
        length, width = lengths[number], lengths[group[0]] if group else lengths[number]
        num_positions = (len(group) + 1) * width
        filled = num_positions - num_tokens - length
        is_much = filled > max(_FREE_PADDING, num_positions // 4)
        if group and (
            is_much or num_positions > MAX_POSITIONS or num_positions * width > MAX_PAIRS
        ):
            groups.append(group)
            group, num_tokens = [], 0
        group.append(number)
        num_tokens += length
    return [*groups, group] if group else groups
