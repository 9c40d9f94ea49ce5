"""A token bucket: a burst, then a rate. The caller passes the time."""


class TokenBucket:
    """A token bucket whose level may become negative."""

    def __init__(self, *, rate: float, capacity: float, now: float) -> None:
        """Begin full.

        Args:
            rate: Refill per second.
            capacity: Size of the bucket.
            now: Seconds of a monotonic clock.
        """
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._since = now

    def resize(self, *, rate: float, capacity: float, now: float) -> None:
        """Change rate and capacity; the level stays, unless it is above the new capacity."""
        self._fill(now)
        self.rate, self.capacity = rate, capacity
        self._level = min(capacity, self._level)

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` is available; infinite if it never will be."""
        self._fill(now)
        if amount > self.capacity:
            return float("inf")
        return max(0.0, (amount - self._level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into debt if need be."""
        self._fill(now)
        self._level -= amount

    def give_back(self, amount: float) -> None:
        """Return what was taken but not used."""
        self._level = min(self.capacity, self._level + amount)

    def _fill(self, now: float) -> None:
        self._level = min(self.capacity, self._level + (now - self._since) * self.rate)
        self._since = now
