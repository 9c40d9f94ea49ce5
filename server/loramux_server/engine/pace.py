"""How many prompt tokens a step may have beside decode, from the cost of recent steps.

Knows nothing of tensors or clocks. Chunked prefill that does not stall decode is the idea of
Sarathi-Serve (Agrawal et al., OSDI 2024, arXiv:2403.02310). There a token budget is found by
profiling beforehand; here it adapts to the machine: a step with decode should end in time, and the
costs of decode and of a prompt token are medians of recent steps. So a step that compiles, warms up
or is interrupted changes nothing, and a machine that becomes slower is noticed after a few steps.
"""

from collections import deque
from statistics import median_low

_MEMORY = 7
"""Recent steps of each kind that are remembered."""
_MIN_TOKENS = 64
"""Always allowed, so that prompts progress; the cost of a token is not learned from fewer."""
_UNKNOWN_PART = 1 / 16
"""Assumed cost of a draft token, relative to decode, before it is known."""
_LEAST_PART = 1 / 256
"""Its minimum, relative to decode."""
_DOUBTED_AFTER = 128
"""Steps without drafts after which their estimated cost is halved."""
_MIN_SECONDS = 1e-9
"""Minimum cost of a prompt."""


class Pace:
    """Learns from finished steps how much the next one may have."""

    def __init__(self, max_stall: float) -> None:
        """Begin without knowledge of costs.

        Args:
            max_stall: Seconds that a step with decode should take at most; 0 means no limit.
        """
        self._max_stall = max_stall
        self._decode_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._token_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._draft_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._num_undrafted = 0
        """Steps without drafts since the cost of these was last measured or halved."""

    @property
    def max_prompt_tokens(self) -> int | None:
        """Most prompt tokens for a step that decodes too; None if there is no limit."""
        if not self._max_stall:
            return None
        if not self._token_seconds:
            return _MIN_TOKENS
        seconds = self._max_stall - self._decode_cost
        return max(_MIN_TOKENS, int(seconds / self._token_cost))

    def max_draft_tokens(self, prompt_tokens: int) -> int | None:
        """Return the most draft tokens for a step with `prompt_tokens`; None means no limit."""
        if not (self._max_stall and self._draft_cost):
            return None
        seconds = self._max_stall - self._decode_cost - prompt_tokens * self._token_cost
        return max(0, int(seconds / self._draft_cost))

    def part_of_draft(self, prompt_tokens: int) -> float:
        """Return the cost of a draft token, relative to that of the step without drafts.

        Args:
            prompt_tokens: Prompt tokens that the step has beside decode.
        """
        seconds = self._decode_cost + prompt_tokens * self._token_cost
        return self._draft_cost / seconds if seconds and self._draft_cost else _UNKNOWN_PART

    def least_seconds(self, prompt_tokens: int, decode_steps: int) -> float:
        """Return the seconds that this takes if nothing else runs; 0 while unknown."""
        return prompt_tokens * self._token_cost + decode_steps * self._decode_cost

    def learn(
        self, prompt_tokens: int, decode_tokens: int, seconds: float, draft_tokens: int = 0
    ) -> None:
        """Record what a step cost."""
        drafts = draft_tokens * self._draft_cost
        if draft_tokens and self._decode_cost and not prompt_tokens:
            self._draft_seconds.append(max(seconds - self._decode_cost, 0.0) / draft_tokens)
            self._num_undrafted = 0
        elif decode_tokens and not draft_tokens:
            self._decay_draft_cost()
        if drafts > seconds / 2:  # the step says little about the other costs
            return
        if not prompt_tokens:
            self._decode_seconds.append(seconds - drafts)
        elif prompt_tokens >= _MIN_TOKENS:
            # The cost of decode goes stale while every step has a prompt. The difference is then
            # attributed to the prompt tokens, so a step like this one is still predicted right; but
            # they never get so cheap that the next step would have far too many.
            rest = seconds - drafts - (self._decode_cost if decode_tokens else 0.0)
            self._token_seconds.append(max(rest, seconds / 3, _MIN_SECONDS) / prompt_tokens)

    def _decay_draft_cost(self) -> None:
        """Halve the cost of drafts after a while without, so that they are tried again."""
        self._num_undrafted += 1
        if self._num_undrafted == _DOUBTED_AFTER:
            cost = self._draft_cost / 2
            self._draft_seconds.clear()
            self._draft_seconds.append(cost)
            self._num_undrafted = 0

    @property
    def _decode_cost(self) -> float:
        return median_low(self._decode_seconds) if self._decode_seconds else 0.0

    @property
    def _token_cost(self) -> float:
        return median_low(self._token_seconds) if self._token_seconds else 0.0

    @property
    def _draft_cost(self) -> float:
        """The cost of a draft token, which includes its logits and sampling."""
        if self._draft_seconds:
            # Fast steps by chance must not make drafts appear free.
            least = max(self._token_cost / 2, self._decode_cost * _LEAST_PART)
            return max(median_low(self._draft_seconds), least)
        return max(self._token_cost, self._decode_cost * _UNKNOWN_PART)
