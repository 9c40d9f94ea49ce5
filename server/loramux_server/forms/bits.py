"""Sets of tokens as bit masks, the lowest bit of a byte first."""

from collections.abc import Iterable


def bits_of(tokens: Iterable[int]) -> int:
    """Return an integer in which the bit of each of `tokens` is set."""
    return sum(1 << token for token in set(tokens))


def has_bit(bits: bytes, token: int) -> bool:
    """Return whether the bit of `token` is set."""
    return token >> 3 < len(bits) and bool(bits[token >> 3] >> (token & 7) & 1)
