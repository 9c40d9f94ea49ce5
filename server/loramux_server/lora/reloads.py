"""Whether a tier is too small: adapters that come back a moment after they had to go."""

from collections import OrderedDict

RECENT_SECONDS = 60.0


class Reloads:
    """Counts loads of what a tier let go within the last minute."""

    def __init__(self) -> None:
        self.count = 0
        """Such loads so far."""
        self._evicted: OrderedDict[str, float] = OrderedDict()
        """Digest -> when it went, longest ago first."""

    def evicted(self, digest: str, now: float) -> None:
        """Note that an adapter went for others at `now`, in seconds of a monotonic clock."""
        self._evicted[digest] = now
        self._evicted.move_to_end(digest)
        self._forget(now)

    def loads(self, digest: str, now: float) -> None:
        """Note that an adapter is loaded from `now` on."""
        self._forget(now)
        self.count += self._evicted.pop(digest, None) is not None

    def _forget(self, now: float) -> None:
        while self._evicted:
            digest, when = next(iter(self._evicted.items()))
            if now - when <= RECENT_SECONDS:
                return
            del self._evicted[digest]
