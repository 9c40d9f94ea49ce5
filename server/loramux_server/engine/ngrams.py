"""An n-gram index: tokens in order, and where each n-gram occurred last.

A draft copies what followed the last tokens where they occurred before: prompt lookup, as in
Saxena's "Prompt lookup decoding" (2023) and `prompt_lookup_num_tokens` of transformers.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZES = (4, 2, 1)
"""Lengths of n-grams, the longest first."""
MOST_RUNS = 3
"""Run lengths are counted up to this."""
BORDER = -1
"""Separates texts: no continuation crosses it, and nothing is found by it."""
_FACTOR = 0x9E3779B97F4A7C15
_BITS = (1 << 64) - 1
_FEWEST_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where the last tokens occurred before."""

    start: int
    """Position of what followed them."""
    rank: int
    """Index in `SIZES` of the length of the match."""


class Ngrams:
    """An n-gram index that grows at its end; takes 55 to 103 bytes per token."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        """Begin with `tokens`."""
        self._tokens = array("i", tokens)
        self._indexes = [_Index(size, self._tokens) for size in SIZES]

    def __len__(self) -> int:
        return len(self._tokens)

    def append(self, token: int) -> None:
        """Add the next token."""
        self._tokens.append(token)
        for index in self._indexes:
            index.append(self._tokens)

    def last(self) -> Sequence[int]:
        """Return the last tokens: as many as the longest n-gram has, or all."""
        return self._tokens[-SIZES[0] :]

    def find(self, last: Sequence[int]) -> Place | None:
        """Return the latest place that the tokens of `last` precede, by the longest match."""
        last = array("i", last)
        for rank, index in enumerate(self._indexes):
            if start := index.find(self._tokens, last):
                return Place(start, rank)
        return None

    def following(self, place: Place, count: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return up to `count` tokens from `place` on, and the run length of each.

        At the end of the text the tokens from `place` on start over: a repetition may go on.
        """
        part = slice(place.start, place.start + count)
        tokens, runs = self._tokens[part], self._indexes[place.rank].runs[part]
        if BORDER in tokens:
            end = tokens.index(BORDER)
            return tokens[:end], runs[:end]
        times = -(-count // len(tokens))
        return (tokens * times)[:count], (runs * times)[:count]

    def keep(self, count: int) -> None:
        """Forget all but the last `count` tokens."""
        del self._tokens[:-count]
        for index in self._indexes:
            del index.runs[:-count]
            index.fill(self._tokens)


class _Index:
    """Where each n-gram of `size` tokens occurred last."""

    def __init__(self, size: int, tokens: "array[int]") -> None:
        self._size = size
        self.runs = bytearray(len(tokens))
        """Run length of each token: how often in a row it had followed its n-gram before."""
        self.fill(tokens)

    def fill(self, tokens: "array[int]") -> None:
        """Index all `tokens`, with more than four slots for each."""
        size = max(_FEWEST_SLOTS, 1 << (4 * len(tokens)).bit_length())
        place_S = np.zeros(size, np.int32)
        if len(tokens) > self._size:
            token_T = np.array(tokens, np.int64).astype(np.uint64)
            num_places = len(tokens) - self._size
            hash_P = np.zeros(num_places, np.uint64)
            for first in range(self._size):
                hash_P = (hash_P ^ token_T[first : first + num_places]) * np.uint64(_FACTOR)
            slot_P = (hash_P >> np.uint64(32)) & np.uint64(size - 1)
            # Of several places with the same slot, the last one stays.
            place_S[slot_P] = np.arange(self._size, len(tokens), dtype=np.int32)
        self._place = array("i", place_S.tobytes())
        """Slot of an n-gram -> position after its last occurrence; 0 for none. An n-gram whose slot
        was overwritten by another is not found."""

    def append(self, tokens: "array[int]") -> None:
        """Index the last of `tokens`."""
        here = len(tokens) - 1
        self.runs.append(0)
        if here < self._size:
            return
        if 4 * here >= len(self._place):
            self.fill(tokens[:here])
        last = tokens[here - self._size : here]
        slot = self._slot(last)
        before = self._place[slot]
        if before and tokens[before] == tokens[here] and self._is_before(before, tokens, last):
            self.runs[here] = min(MOST_RUNS, self.runs[before] + 1)
        self._place[slot] = here

    def find(self, tokens: "array[int]", last: "array[int]") -> int:
        """Return the latest position that the end of `last` precedes; 0 if there is none."""
        if len(last) < self._size:
            return 0
        last = last[-self._size :]
        place = self._place[self._slot(last)]
        return place if place and self._is_before(place, tokens, last) else 0

    def _is_before(self, place: int, tokens: "array[int]", last: "array[int]") -> bool:
        return tokens[place - self._size : place] == last

    def _slot(self, last: "array[int]") -> int:
        found = 0
        for token in last:
            found = (found ^ (token & _BITS)) * _FACTOR & _BITS
        return found >> 32 & len(self._place) - 1
