"""The position in a prompt from which an adapter with invocation tokens (aLoRA) is active.

As in PEFT's `generate`, it is the start of their last occurrence in the prompt; generated tokens do
not move it. If they do not occur, the adapter does nothing.

Source: Greenewald et al. 2025, "Activated LoRA" (arXiv 2504.12397).
"""

from collections.abc import Sequence


def last_place(tokens: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Return where `pattern`, which is not empty, last begins in `tokens`; None if nowhere.

    Knuth-Morris-Pratt search from the end, in linear time.
    """
    wanted = pattern[::-1]
    fallback = _fallbacks(wanted)
    matched = 0
    for place in range(len(tokens) - 1, -1, -1):
        while matched and tokens[place] != wanted[matched]:
            matched = fallback[matched - 1]
        matched += tokens[place] == wanted[matched]
        if matched == len(wanted):
            return place
    return None


def _fallbacks(pattern: Sequence[int]) -> list[int]:
    """Return for each prefix of `pattern` the length of its longest border."""
    fallback = [0] * len(pattern)
    matched = 0
    for i in range(1, len(pattern)):
        while matched and pattern[i] != pattern[matched]:
            matched = fallback[matched - 1]
        matched += pattern[i] == pattern[matched]
        fallback[i] = matched
    return fallback
