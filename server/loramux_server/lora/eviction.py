"""Eviction policies: the order in which adapters leave a tier."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Eviction(Protocol):
    """Orders the adapters that have room in a tier, by their sizes, uses and load times."""

    def on_allocate(self, digest: str, size: int) -> None:
        """Record that `size` was allocated to an adapter, whose load starts."""

    def on_load(self, digest: str, seconds: float) -> None:
        """Record that its load is done, and took `seconds`."""

    def on_use(self, digest: str) -> None:
        """Record a use by a request."""

    def on_remove(self, digest: str, *, is_evicted: bool) -> None:
        """Record that it left the tier; `is_evicted`: to make room for another."""

    def order(self) -> Iterable[str]:
        """Yield all adapters that have room, in eviction order."""


class LeastRecentlyUsed:
    """LRU: evicts the adapter whose last use is longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def on_allocate(self, digest: str, size: int) -> None:
        """See `Eviction`."""
        self._order[digest] = None

    def on_load(self, digest: str, seconds: float) -> None:
        """See `Eviction`."""

    def on_use(self, digest: str) -> None:
        """See `Eviction`."""
        self._order.move_to_end(digest)

    def on_remove(self, digest: str, *, is_evicted: bool) -> None:
        """See `Eviction`."""
        del self._order[digest]

    def order(self) -> Iterable[str]:
        """See `Eviction`."""
        return self._order


@dataclass(slots=True)
class _Priority:
    """What an adapter's priority is computed from."""

    size: int
    uses: int = 0
    seconds: float = 0.0
    place: tuple[float, int, str] = (0.0, 0, "")
    """Sort key: priority, sequence number of the last update, digest."""


class CostAware:
    """Evicts the adapter with the least uses x load time per size.

    GreedyDual-Size-Frequency: the priority is the tier's age plus uses x load time / size, and the
    age is the highest priority evicted so far, so that formerly popular adapters age out. (Ludmila
    Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy,
    HP Laboratories HPL-98-69R1, 1998.) Ties go to the least recently used.
    """

    def __init__(self) -> None:
        self._priorities: dict[str, _Priority] = {}
        self._places: list[tuple[float, int, str]] = []
        """Sort keys of all adapters, in order."""
        self._age = 0.0
        self._num_uses = 0

    def on_allocate(self, digest: str, size: int) -> None:
        """See `Eviction`."""
        self._priorities[digest] = _Priority(size)
        self._put(digest)

    def on_load(self, digest: str, seconds: float) -> None:
        """See `Eviction`."""
        self._priorities[digest].seconds = seconds
        self._move(digest)

    def on_use(self, digest: str) -> None:
        """See `Eviction`."""
        self._priorities[digest].uses += 1
        self._move(digest)

    def on_remove(self, digest: str, *, is_evicted: bool) -> None:
        """See `Eviction`."""
        place = self._take(digest)
        del self._priorities[digest]
        if is_evicted:
            self._age = max(self._age, place[0])

    def order(self) -> Iterable[str]:
        """See `Eviction`."""
        return (digest for _, _, digest in self._places)

    def _move(self, digest: str) -> None:
        self._take(digest)
        self._put(digest)

    def _put(self, digest: str) -> None:
        entry = self._priorities[digest]
        self._num_uses += 1
        # At least one use: the request that caused the load is about to use it.
        priority = self._age + max(1, entry.uses) * entry.seconds / entry.size
        entry.place = (priority, self._num_uses, digest)
        insort(self._places, entry.place)

    def _take(self, digest: str) -> tuple[float, int, str]:
        place = self._priorities[digest].place
        del self._places[bisect_left(self._places, place)]
        return place


EVICTIONS: Mapping[str, Callable[[], Eviction]] = {"lru": LeastRecentlyUsed, "cost": CostAware}
"""Value of `--eviction` -> policy."""
