"""How much happens in a second in which somebody waits for it.

Time in which nobody waits says nothing about what could be done, so it does not count.
"""

import math

HALF_LIFE = 10.0
"""Seconds of waiting after which what was seen counts half."""
MIN_SECONDS = 1.0
MIN_EVENTS = 4
"""A rate is known from so much on."""


class BusyRate:
    """A rate that forgets."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0
        self._num_events = 0

    def add(self, amount: float) -> None:
        """Note that so much happened."""
        self._amount += amount
        self._num_events += 1

    def pass_time(self, seconds: float) -> None:
        """Note that somebody waited for so long."""
        keep = 0.5 ** (seconds / HALF_LIFE)
        self._amount *= keep
        # The seconds fade as what happened in them does: the integral of what is kept of each.
        self._seconds = self._seconds * keep + (1 - keep) * HALF_LIFE / math.log(2)

    @property
    def per_second(self) -> float | None:
        """What happens in a second, or None as long as too little is known."""
        if self._seconds < MIN_SECONDS or self._num_events < MIN_EVENTS or not self._amount:
            return None
        return self._amount / self._seconds
