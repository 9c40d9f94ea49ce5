"""A token bucket: so much at once, and then so much in a second. Knows no clock."""


class TokenBucket:
    """What may be taken fills up again with time."""

    def __init__(self, *, rate: float, capacity: float, now: float) -> None:
        """Begin full.

        Args:
            rate: What comes back in a second.
            capacity: The most that there is.
            now: Seconds of a clock that never goes back.
        """
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._since = now

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` is there; infinite if it never will be."""
        self._fill(now)
        if amount > self.capacity:
            return float("inf")
        return max(0.0, (amount - self._level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`; what is not there is owed."""
        self._fill(now)
        self._level -= amount

    def give_back(self, amount: float) -> None:
        """Put back what was taken and not used."""
        self._level = min(self.capacity, self._level + amount)

    def _fill(self, now: float) -> None:
        self._level = min(self.capacity, self._level + (now - self._since) * self.rate)
        self._since = now
