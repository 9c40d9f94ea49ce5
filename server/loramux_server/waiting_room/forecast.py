"""How long requests will take, from what others took of late."""

from collections import deque
from statistics import median_low

from loramux_server.waiting_room.busy_rate import BusyRate

CAUTION = 1.6
"""So much longer may anything take than is thought.

Who is taken and then cut off by its deadline leaves early: others start sooner than they could if
it were served, and more are taken that will be cut off. With 1.25 most of those taken were, at
twice of what could be served, and it went on so.
"""
_MEMORY = 15
"""Completions that are remembered."""
_SLOW_PART = 0.75
"""So many of them took less for a token than is thought: with drafts some texts come several times
faster than others beside them."""


class Forecast:
    """Learns from completions that start and end."""

    def __init__(self) -> None:
        self._starts = BusyRate()
        """Completions that leave the queue."""
        self._freed = BusyRate()
        """Tokens whose KV memory becomes free."""
        self._lengths: deque[int] = deque(maxlen=_MEMORY)
        self._token_seconds: deque[float] = deque(maxlen=_MEMORY)

    def pass_time(self, seconds: float) -> None:
        """Note that somebody waited for so long until others end."""
        self._starts.pass_time(seconds)
        self._freed.pass_time(seconds)

    def started(self) -> None:
        """Note that a completion left the queue while others waited."""
        self._starts.add(1)

    def freed(self, num_tokens: int) -> None:
        """Note that the memory of so many tokens became free while somebody waited."""
        self._freed.add(num_tokens)

    def ran(self, num_output: int, seconds: float) -> None:
        """Note that a completion made so many tokens, so many seconds after its start."""
        if num_output:
            self._lengths.append(num_output)
            self._token_seconds.append(seconds / num_output)

    def start_seconds(self, count: float) -> float | None:
        """Return in how many seconds so many completions have left the queue, if that is known."""
        rate = self._starts.per_second
        return None if rate is None else count / rate

    def free_seconds(self, num_tokens: float) -> float | None:
        """Return in how many seconds the memory of so many tokens is free, if that is known."""
        rate = self._freed.per_second
        return None if rate is None else num_tokens / rate

    def run_seconds(self, max_tokens: int) -> float:
        """Return how long a completion runs that may have so many tokens; 0 if nothing is known.

        Neither the longest nor the slowest count: a few whose readers let them wait say nothing
        about others.
        """
        if not self._lengths:
            return 0.0
        seconds = sorted(self._token_seconds)
        slow = seconds[min(int(_SLOW_PART * len(seconds)), len(seconds) - 1)]
        return min(max_tokens, median_low(self._lengths)) * slow
