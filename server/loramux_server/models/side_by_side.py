"""Texts that an encoder reads at once: side by side, the shorter ones filled up.

Each text alone takes as many operations as all of them, which on a GPU is what takes the time. What
was filled up is seen by no token, and linear layers are not given it.

Legend: B texts, L tokens of the longest, T tokens of all, N places where a token may be (B * L).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MOST_PLACES = 1 << 14
"""Of texts that are read at once."""
MOST_PAIRS = 1 << 22
"""Of tokens that may see each other in them: attention of some models has a number for each, and
for each head."""
_FREE_PLACES = 1 << 10
"""Filled up without a thought: they take less than the operations of another text would."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of texts are that lie side by side."""

    token_T: torch.Tensor
    """The tokens in the batch, text by text; int64."""
    place_T: torch.Tensor
    """The place of each, likewise."""
    lengths: tuple[int, ...]
    """Tokens of each text."""

    @staticmethod
    def of(spans: Sequence[tuple[int, int]], device: torch.device) -> "Places":
        """Return those of texts with these first tokens and tokens after the last."""
        lengths = tuple(end - start for start, end in spans)
        width = max(lengths)
        token_T = torch.cat([torch.arange(start, end) for start, end in spans])
        place_T = torch.cat(
            [torch.arange(length) + text * width for text, length in enumerate(lengths)]
        )
        return Places(token_T.to(device), place_T.to(device), lengths)

    def __len__(self) -> int:
        return len(self.token_T)

    @property
    def num_places(self) -> int:
        """How many there are, those that are filled up among them."""
        return len(self.lengths) * max(self.lengths)

    @property
    def is_full(self) -> bool:
        """Whether no text is filled up."""
        return len(self) == self.num_places

    def taken(self, x_NK: torch.Tensor) -> torch.Tensor:
        """Return the rows of tokens, [T, K]."""
        return x_NK if self.is_full else x_NK.index_select(0, self.place_T)

    def spread(self, y_TN: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Return rows of tokens in their places, and `fill` in others."""
        if self.is_full:
            return y_TN
        spread = y_TN.new_full((self.num_places, *y_TN.shape[1:]), fill)
        return spread.index_copy_(0, self.place_T, y_TN)

    def side_by_side(self, token_T: torch.Tensor, fill: int) -> torch.Tensor:
        """Return the texts as [B, L]; `token_T` are all tokens of the batch."""
        return self.spread(token_T.index_select(0, self.token_T), fill).view(len(self.lengths), -1)

    def is_token(self) -> torch.Tensor:
        """Return 1 where there is a token, [B, L], int64; 0 where it was filled up."""
        return self.spread(torch.ones_like(self.token_T)).view(len(self.lengths), -1)


def together(lengths: Sequence[int], is_alone: Sequence[bool]) -> list[list[int]]:
    """Return which texts are read at once: the numbers of each such group, and of all texts.

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
        places = (len(group) + 1) * width
        filled = places - num_tokens - length
        is_much = filled > max(_FREE_PLACES, places // 4)
        if group and (is_much or places > MOST_PLACES or places * width > MOST_PAIRS):
            groups.append(group)
            group, num_tokens = [], 0
        group.append(number)
        num_tokens += length
    return [*groups, group] if group else groups
