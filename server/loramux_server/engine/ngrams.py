"""Tokens in order, and where each few of them came last.

Whoever looks for what may come next finds the place at which the last tokens came before: prompt
lookup, as in Saxena's "Prompt lookup decoding" (2023) and `prompt_lookup_num_tokens` of
transformers.
"""

from array import array
from collections.abc import Sequence

import numpy as np

SIZE = 3
"""Tokens by which a place is found."""
MOST_RUNS = 3
"""A place's runs are counted up to this."""
BORDER = -1
"""Stands between texts: nothing goes on beyond it, and nothing is found by it."""
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_FEWEST_SLOTS = 64


class Ngrams:
    """Grows at its end; takes 13 to 21 bytes for each token."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        """Begin with `tokens`."""
        self._tokens = array("i", tokens)
        self._runs = bytearray(len(tokens))
        """How often in a row each token came after those before it, before it did here."""
        self._place = array("i")
        """Slot of a few tokens -> the place of what came after them last; 0 for none. Others may
        have taken the slot meanwhile, and then these are not found."""
        self._fill()

    def __len__(self) -> int:
        return len(self._tokens)

    def append(self, token: int) -> None:
        """Take in what comes next."""
        tokens, here = self._tokens, len(self._tokens)
        if 2 * here >= len(self._place):
            self._fill()
        tokens.append(token)
        self._runs.append(0)
        if here < SIZE:
            return
        slot = self._slot(tokens[here - 3], tokens[here - 2], tokens[here - 1])
        before = self._place[slot]
        if before and tokens[before] == token and self._is_same(before, here):
            self._runs[here] = min(MOST_RUNS, self._runs[before] + 1)
        self._place[slot] = here

    def find(self, last: Sequence[int]) -> int:
        """Return the latest place that the `SIZE` tokens of `last` came before; 0 if none did."""
        first, second, third = last
        place, tokens = self._place[self._slot(first, second, third)], self._tokens
        is_found = (
            place
            and tokens[place - 3] == first
            and tokens[place - 2] == second
            and tokens[place - 1] == third
        )
        return place if is_found else 0

    def last(self) -> Sequence[int]:
        """Return the last `SIZE` tokens, or fewer if there are."""
        return self._tokens[-SIZE:]

    def following(self, place: int, count: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return up to `count` tokens from `place` on, and the runs of each.

        Where the text ends it goes on as it did from `place`: what repeats itself may do so again.
        """
        tokens, runs = self._tokens[place : place + count], self._runs[place : place + count]
        if BORDER in tokens:
            end = tokens.index(BORDER)
            return tokens[:end], runs[:end]
        times = -(-count // len(tokens))
        return (tokens * times)[:count], (runs * times)[:count]

    def keep(self, count: int) -> None:
        """Forget all but the last `count` tokens."""
        del self._tokens[:-count], self._runs[:-count]
        self._place = array("i")
        self._fill()

    def _is_same(self, place: int, other: int) -> bool:
        tokens = self._tokens
        return tokens[place - SIZE : place] == tokens[other - SIZE : other]

    def _slot(self, first: int, second: int, third: int) -> int:
        one, two, three = _FACTORS
        return (first * one ^ second * two ^ third * three) >> 7 & len(self._place) - 1

    def _fill(self) -> None:
        """Have more than two slots for each token, and note all places in them."""
        size = max(_FEWEST_SLOTS, 1 << (2 * len(self._tokens)).bit_length())
        place_S = np.zeros(size, np.int32)
        tokens = np.array(self._tokens, np.int64)
        if len(tokens) > SIZE:
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], SIZE)
            first, second, third = (windows * np.array(_FACTORS)).T
            slot = (first ^ second ^ third) >> 7 & size - 1
            place_S[slot] = np.arange(SIZE, len(tokens), dtype=np.int32)  # the last one stays
        self._place = array("i", place_S.tobytes())
