"""Forecasts of how long requests will take, from recent ones."""

from collections import deque
from statistics import median_low

from loramux_server.waiting_room.busy_rate import BusyRate

CAUTION = 1.6
"""Safety factor on forecasts.

A request that is admitted and then cut off by its deadline leaves early. So others start sooner
than if it had been served in full, the forecast gets too short, and more are admitted that will be
cut off. With 1.25 and twice the load that could be served, most were, without end.
"""
_MEMORY = 15
"""Recent completions that are remembered."""
_SLOW_PART = 0.75
"""Quantile of their seconds per token that is assumed: with speculative decoding, some texts come
several times faster than others in the same batch."""


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
        """Record that somebody waited `seconds` for others to end."""
        self._starts.pass_time(seconds)
        self._freed.pass_time(seconds)

    def started(self) -> None:
        """Record that a completion left the queue while others waited."""
        self._starts.add(1)

    def freed(self, num_tokens: int) -> None:
        """Record that KV memory for `num_tokens` became free while somebody waited."""
        self._freed.add(num_tokens)

    def ran(self, num_output: int, seconds: float) -> None:
        """Record that a completion ended with `num_output` tokens, `seconds` after its start."""
        if num_output:
            self._lengths.append(num_output)
            self._token_seconds.append(seconds / num_output)

    def start_seconds(self, count: float) -> float | None:
        """Return the seconds until `count` completions have left the queue; None if unknown."""
        rate = self._starts.per_second
        return None if rate is None else count / rate

    def free_seconds(self, num_tokens: float) -> float | None:
        """Return the seconds until KV memory for `num_tokens` is free; None if unknown."""
        rate = self._freed.per_second
        return None if rate is None else num_tokens / rate

    def run_seconds(self, max_tokens: int) -> float:
        """Return the seconds that a completion of at most `max_tokens` will run; 0 if unknown.

        It is robust to outliers: a few completions with slow readers say nothing about others.
        """
        if not self._lengths:
            return 0.0
        seconds = sorted(self._token_seconds)
        slow = seconds[min(int(_SLOW_PART * len(seconds)), len(seconds) - 1)]
        return min(max_tokens, median_low(self._lengths)) * slow
