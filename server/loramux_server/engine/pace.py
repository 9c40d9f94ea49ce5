"""How many prompt tokens a step may take beside decode, from what the last steps cost.

Knows nothing of tensors or clocks. That prompts run in chunks between which nobody's decode stalls
is the idea of Sarathi-Serve (Agrawal et al., OSDI 2024, arXiv:2403.02310). There a token budget is
found by profiling beforehand; here it follows the machine: a step with decode should end in time,
and the costs of decode and of a prompt token are medians of what was seen lately. So a step that
compiles, warms up or is interrupted changes nothing, and a machine that turns slower is noticed
after a few steps.
"""

from collections import deque
from statistics import median_low

_MEMORY = 7
"""Steps of each kind that are remembered."""
_MIN_TOKENS = 64
"""So many are always allowed, so that prompts go on; the cost of one is not learnt from fewer."""
_UNKNOWN_PART = 1 / 16
"""What a drafted token is thought to cost, as a part of decode, before that is known."""
_LEAST_PART = 1 / 256
"""What it costs at least."""
_DOUBTED_AFTER = 128
"""Steps without drafts after which these may have become cheaper than they were."""
_MIN_SECONDS = 1e-9
"""Least cost of a prompt."""


class Pace:
    """Learns from finished steps what the next one may take."""

    def __init__(self, max_stall: float) -> None:
        """Begin knowing nothing.

        Args:
            max_stall: Seconds that a step with decode should take at most; 0 means no limit.
        """
        self._max_stall = max_stall
        self._decode_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._token_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._draft_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._num_undrafted = 0
        """Steps without drafts since the last that told what these cost."""

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
        """Most drafted tokens for a step with so many of prompts; None if there is no limit."""
        if not (self._max_stall and self._draft_cost):
            return None
        seconds = self._max_stall - self._decode_cost - prompt_tokens * self._token_cost
        return max(0, int(seconds / self._draft_cost))

    def part_of_draft(self, prompt_tokens: int) -> float:
        """Return what a drafted token costs a step, as a part of what the step costs without.

        Args:
            prompt_tokens: Tokens of prompts that the step has beside decode.
        """
        seconds = self._decode_cost + prompt_tokens * self._token_cost
        return self._draft_cost / seconds if seconds and self._draft_cost else _UNKNOWN_PART

    def least_seconds(self, prompt_tokens: int, decode_steps: int) -> float:
        """Return what so many tokens take if nothing else runs; 0 where that is not known yet."""
        return prompt_tokens * self._token_cost + decode_steps * self._decode_cost

    def learn(
        self, prompt_tokens: int, decode_tokens: int, seconds: float, draft_tokens: int = 0
    ) -> None:
        """Take in what a step cost."""
        drafts = draft_tokens * self._draft_cost
        if draft_tokens and self._decode_cost and not prompt_tokens:
            self._draft_seconds.append(max(seconds - self._decode_cost, 0.0) / draft_tokens)
            self._num_undrafted = 0
        elif decode_tokens and not draft_tokens:
            self._doubt_drafts()
        if drafts > seconds / 2:  # it tells little of the rest
            return
        if not prompt_tokens:
            self._decode_seconds.append(seconds - drafts)
        elif prompt_tokens >= _MIN_TOKENS:
            # The cost of decode gets out of date while every step has a prompt. Then the tokens are
            # blamed for the difference, and a step like this one is still foreseen right; but
            # they are never thought so cheap that the next step would take far too many.
            rest = seconds - drafts - (self._decode_cost if decode_tokens else 0.0)
            self._token_seconds.append(max(rest, seconds / 3, _MIN_SECONDS) / prompt_tokens)

    def _doubt_drafts(self) -> None:
        """Think drafts cheaper after a while without: who never tries them again never knows."""
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
        """What a drafted token costs: its row has logits, too, and its token is drawn."""
        if self._draft_seconds:
            # A moment in which a step was quick must not let drafts be thought free.
            least = max(self._token_cost / 2, self._decode_cost * _LEAST_PART)
            return max(median_low(self._draft_seconds), least)
        return max(self._token_cost, self._decode_cost * _UNKNOWN_PART)
