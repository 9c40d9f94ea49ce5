"""In which order adapters leave a tier when others need their room."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Eviction(Protocol):
    """An order of the adapters that have room in a tier. Knows sizes, uses and what loads took."""

    def came(self, digest: str, size: int) -> None:
        """Note that an adapter got so much room; it is on its way."""

    def loaded(self, digest: str, seconds: float) -> None:
        """Note that it is here, and what it took to bring it."""

    def used(self, digest: str) -> None:
        """Note that a request uses it now."""

    def went(self, digest: str, *, is_evicted: bool) -> None:
        """Note that it is gone, for others if it `is_evicted`."""

    def order(self) -> Iterable[str]:
        """Yield all that have room, those first that are to go first."""


class LeastRecentlyUsed:
    """What was not used for longest goes first."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def came(self, digest: str, size: int) -> None:
        """See `Eviction`."""
        self._order[digest] = None

    def loaded(self, digest: str, seconds: float) -> None:
        """See `Eviction`."""

    def used(self, digest: str) -> None:
        """See `Eviction`."""
        self._order.move_to_end(digest)

    def went(self, digest: str, *, is_evicted: bool) -> None:
        """See `Eviction`."""
        del self._order[digest]

    def order(self) -> Iterable[str]:
        """See `Eviction`."""
        return self._order


@dataclass(slots=True)
class _Worth:
    """What speaks for an adapter."""

    size: int
    uses: int = 0
    seconds: float = 0.0
    place: tuple[float, int, str] = (0.0, 0, "")
    """Its priority, when it was last used, and its digest."""


class CostAware:
    """What costs least to bring back, for the room it takes, goes first: load time x popularity.

    GreedyDual-Size-Frequency: the priority is the tier's age plus uses x load time / size, and the
    age is the priority of what went last, so that what was popular once goes in the end. (Ludmila
    Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy,
    HP Laboratories HPL-98-69R1, 1998.) Of equals the least recently used goes first.
    """

    def __init__(self) -> None:
        self._worth: dict[str, _Worth] = {}
        self._places: list[tuple[float, int, str]] = []
        """The places of all, in order."""
        self._age = 0.0
        self._num_uses = 0

    def came(self, digest: str, size: int) -> None:
        """See `Eviction`."""
        self._worth[digest] = _Worth(size)
        self._put(digest)

    def loaded(self, digest: str, seconds: float) -> None:
        """See `Eviction`."""
        self._worth[digest].seconds = seconds
        self._move(digest)

    def used(self, digest: str) -> None:
        """See `Eviction`."""
        self._worth[digest].uses += 1
        self._move(digest)

    def went(self, digest: str, *, is_evicted: bool) -> None:
        """See `Eviction`."""
        place = self._take(digest)
        del self._worth[digest]
        if is_evicted:
            self._age = max(self._age, place[0])

    def order(self) -> Iterable[str]:
        """See `Eviction`."""
        return (digest for _, _, digest in self._places)

    def _move(self, digest: str) -> None:
        self._take(digest)
        self._put(digest)

    def _put(self, digest: str) -> None:
        worth = self._worth[digest]
        self._num_uses += 1
        # Who brought it is about to use it.
        priority = self._age + max(1, worth.uses) * worth.seconds / worth.size
        worth.place = (priority, self._num_uses, digest)
        insort(self._places, worth.place)

    def _take(self, digest: str) -> tuple[float, int, str]:
        place = self._worth[digest].place
        del self._places[bisect_left(self._places, place)]
        return place


EVICTIONS: Mapping[str, Callable[[], Eviction]] = {"lru": LeastRecentlyUsed, "cost": CostAware}
"""By the value of `--eviction`."""
