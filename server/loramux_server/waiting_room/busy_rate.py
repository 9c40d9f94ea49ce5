"""A rate measured only while somebody waits.

Idle time says nothing about capacity, so it does not count.
"""

import math

HALF_LIFE = 10.0
"""Seconds of waiting after which an observation counts half."""
MIN_SECONDS = 1.0
MIN_EVENTS = 4
"""Observations needed before a rate is known."""


class BusyRate:
    """A rate with exponential decay."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0
        self._num_events = 0

    def add(self, amount: float) -> None:
        """Record an event that counts `amount`."""
        self._amount += amount
        self._num_events += 1

    def pass_time(self, seconds: float) -> None:
        """Record that somebody waited for `seconds`."""
        keep = 0.5 ** (seconds / HALF_LIFE)
        self._amount *= keep
        # Elapsed seconds decay like the amounts: added is the integral of the decay over them.
        self._seconds = self._seconds * keep + (1 - keep) * HALF_LIFE / math.log(2)

    @property
    def per_second(self) -> float | None:
        """Amount per second of waiting, or None while too little is known."""
        if self._seconds < MIN_SECONDS or self._num_events < MIN_EVENTS or not self._amount:
            return None
        return self._amount / self._seconds
