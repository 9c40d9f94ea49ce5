"""Thrashing detection: counts adapters that are reloaded soon after their eviction."""

from collections import OrderedDict

RECENT_SECONDS = 60.0


class Reloads:
    """Counts loads of adapters that the tier evicted within the last minute."""

    def __init__(self) -> None:
        self.count = 0
        """Such loads so far."""
        self._evicted: OrderedDict[str, float] = OrderedDict()
        """Digest -> time of its eviction, oldest first."""

    def evicted(self, digest: str, now: float) -> None:
        """Record that an adapter was evicted at `now`, in seconds of a monotonic clock."""
        self._evicted[digest] = now
        self._evicted.move_to_end(digest)
        self._forget(now)

    def loads(self, digest: str, now: float) -> None:
        """Record that the load of an adapter starts at `now`."""
        self._forget(now)
        self.count += self._evicted.pop(digest, None) is not None

    def _forget(self, now: float) -> None:
        while self._evicted:
            digest, when = next(iter(self._evicted.items()))
            if now - when <= RECENT_SECONDS:
                return
            del self._evicted[digest]
