"""Where in a prompt an adapter begins that waits for its invocation tokens (aLoRA).

As in PEFT's `generate` it is the prompt that decides: at the last place where it has these tokens,
with the first of them. What is generated does not move it. Without them the adapter does nothing.

Source: Greenewald et al. 2025, "Activated LoRA" (arXiv 2504.12397).
"""

from collections.abc import Sequence


def last_place(tokens: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Return where `pattern`, of one token at least, last begins in `tokens`; None if nowhere.

    Looks at each token once or twice, from the end on: Knuth, Morris and Pratt's algorithm.
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
    """Return for each beginning of `pattern` how long a shorter one is with which it ends."""
    fallback = [0] * len(pattern)
    matched = 0
    for i in range(1, len(pattern)):
        while matched and pattern[i] != pattern[matched]:
            matched = fallback[matched - 1]
        matched += pattern[i] == pattern[matched]
        fallback[i] = matched
    return fallback
