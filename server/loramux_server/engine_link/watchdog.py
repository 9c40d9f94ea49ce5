"""Decides when an engine has been silent for too long.

Reads no clock: the caller polls it with the time.
"""

from collections import deque
from statistics import median_low

from loramux_server.wire.messages import BatchSize

_MEMORY = 7
"""Recent steps of each kind that are remembered."""
_MANY_TOKENS = 64
"""The cost of a token is learned from steps with at least this many."""
_STEPS = 10
"""A step may take this many times what steps took lately."""
_FULL_STEPS = 4
"""A step may take as long as this many steps of `max_batch_tokens`."""


class Watchdog:
    """Tracks how long an engine has been silent, and how long it may be."""

    def __init__(self, seconds: float, max_batch_tokens: int) -> None:
        """Begin without knowledge of step costs.

        Args:
            seconds: Silence that is always allowed; slow steps extend it.
            max_batch_tokens: Most tokens of a step.
        """
        self._seconds = seconds
        self._max_batch_tokens = max_batch_tokens
        self._step_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._token_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._silence = 0.0
        self._polled_at = 0.0
        self.interval = seconds / 8
        """Seconds between two polls."""

    @property
    def patience(self) -> float:
        """Seconds of silence that are allowed now.

        Costs are medians, so that one interrupted step changes nothing. Long prompts keep steps
        full; the cost of a full step follows from the cost per token.
        """
        usual = median_low(self._step_seconds) if self._step_seconds else 0.0
        token = median_low(self._token_seconds) if self._token_seconds else 0.0
        return max(self._seconds, _STEPS * usual, _FULL_STEPS * self._max_batch_tokens * token)

    def begin(self, now: float) -> None:
        """Begin to watch an engine that has just become ready."""
        self._silence, self._polled_at = 0.0, now

    def record_report(self, batch: BatchSize | None) -> None:
        """Record a sign of life, and the cost of the step that it reports."""
        self._silence = 0.0
        if batch is None:
            return
        self._step_seconds.append(batch.seconds)
        if batch.tokens >= _MANY_TOKENS:
            self._token_seconds.append(batch.seconds / batch.tokens)

    def poll(self, now: float) -> bool:
        """Count the silence up to `now`, and return whether it has been too long."""
        # A late poll means that this process was held up itself, perhaps stopped together with the
        # engine, and an answer may be unread. So a poll adds at most two intervals.
        self._silence += min(now - self._polled_at, 2 * self.interval)
        self._polled_at = now
        return self._silence > self.patience
