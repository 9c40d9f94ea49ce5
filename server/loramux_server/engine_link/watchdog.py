"""When an engine has been silent for too long.

Knows no clock: whoever watches looks again and again, and says what time it is.
"""

from collections import deque
from statistics import median_low

from loramux_server.wire.messages import BatchSize

_MEMORY = 7
"""Steps of each kind that are remembered."""
_MANY_TOKENS = 64
"""What a token costs is learnt from steps that have at least so many."""
_STEPS = 10
"""A step may take so many times what steps took lately."""
_FULL_STEPS = 4
"""It may take as long as so many that are as full as they can be."""


class Watchdog:
    """Knows how long an engine has been silent, and how long it may be."""

    def __init__(self, seconds: float, max_batch_tokens: int) -> None:
        """Begin knowing nothing about steps.

        Args:
            seconds: Silence that is always allowed; more is if steps have been slow.
            max_batch_tokens: Most tokens of a step.
        """
        self._seconds = seconds
        self._max_batch_tokens = max_batch_tokens
        self._step_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._token_seconds: deque[float] = deque(maxlen=_MEMORY)
        self._silence = 0.0
        self._looked = 0.0
        self.interval = seconds / 8
        """Seconds between two looks."""

    @property
    def patience(self) -> float:
        """Seconds of silence that are allowed now.

        Costs are medians, so that a step that was interrupted changes nothing; long prompts keep
        steps full, and what those cost is known from their tokens.
        """
        usual = median_low(self._step_seconds) if self._step_seconds else 0.0
        token = median_low(self._token_seconds) if self._token_seconds else 0.0
        return max(self._seconds, _STEPS * usual, _FULL_STEPS * self._max_batch_tokens * token)

    def begin(self, now: float) -> None:
        """Begin to watch an engine that has just said that it is ready."""
        self._silence, self._looked = 0.0, now

    def heard(self, batch: BatchSize | None) -> None:
        """Take in a sign of life, and what the step cost that it tells of."""
        self._silence = 0.0
        if batch is None:
            return
        self._step_seconds.append(batch.seconds)
        if batch.tokens >= _MANY_TOKENS:
            self._token_seconds.append(batch.seconds / batch.tokens)

    def look(self, now: float) -> bool:
        """Return whether the engine has been silent for too long."""
        # A look that comes late means that the watcher itself was held up: stopped with the engine
        # maybe, whose answer would lie unread.
        self._silence += min(now - self._looked, 2 * self.interval)
        self._looked = now
        return self._silence > self.patience
