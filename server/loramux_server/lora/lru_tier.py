"""One memory tier: which adapters it holds, and which it let go for others."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from loramux_server.engine.messages import AdapterSource, CacheStats


class Room(Protocol):
    """What a tier is made of: rows or bytes."""

    capacity: int
    num_used: int

    def allocate(self, key: str, size: int) -> bool:
        """Give `key` so much; False, and no change, if it is not there."""

    def release(self, key: str) -> None:
        """Take back what `key` has."""

    def victims(
        self, size: int, oldest_first: Iterable[str], pinned: Collection[str]
    ) -> list[str] | None:
        """Return who has to go before `size` can be allocated; None if it is nobody's going."""

    def check(self, keys: Collection[str]) -> None:
        """Assert that `keys` have something, and nobody else."""


class LruTier:
    """Holds the adapters that were used last, as many as there is room for."""

    def __init__(self, room: Room, size_of: Callable[[AdapterSource], int]) -> None:
        """Make an empty tier.

        Args:
            room: What its adapters take.
            size_of: How much of it an adapter takes.
        """
        self._room = room
        self._size_of = size_of
        self._order: OrderedDict[str, None] = OrderedDict()
        """Digests that have room here, least recently used first."""
        self._reserved: set[str] = set()
        """Those of them that are on their way."""
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._order and digest not in self._reserved

    def digests(self) -> set[str]:
        """Return what is here."""
        return self._order.keys() - self._reserved

    def fits(self, source: AdapterSource) -> bool:
        """Return whether `source` has room here when nothing else has."""
        return self._size_of(source) <= self._room.capacity

    def look_up(self, digest: str) -> bool:
        """Return whether an adapter that is asked for is here, and count the hit or miss."""
        is_hit = digest in self
        self._hits += is_hit
        self._misses += not is_hit
        return is_hit

    def touch(self, digest: str) -> None:
        """Note that an adapter is used now, if it is here."""
        if digest in self:
            self._order.move_to_end(digest)

    def reserve(self, source: AdapterSource, pinned: Collection[str]) -> list[str] | None:
        """Take room for an adapter that is to come.

        Args:
            source: The adapter.
            pinned: Adapters that have to stay.

        Returns:
            Those that went to make the room; None, and no change, if there can be no room.
        """
        size = self._size_of(source)
        evicted = self._room.victims(size, self._order, pinned)
        if evicted is None:
            return None
        for digest in evicted:
            self.evict(digest)
        has_room = self._room.allocate(source.digest, size)
        assert has_room, "the right ones went, and still there is no room"
        self._order[source.digest] = None
        self._reserved.add(source.digest)
        return evicted

    def commit(self, digest: str) -> None:
        """Note that an adapter that was on its way is here."""
        self._reserved.remove(digest)

    def abandon(self, digest: str) -> None:
        """Give back the room of an adapter that will not come."""
        self._reserved.remove(digest)
        self._remove(digest)

    def evict(self, digest: str) -> None:
        """Let an adapter go."""
        assert digest in self, "what is on its way cannot go"
        self._remove(digest)
        self._evictions += 1

    def stats(self, unit_bytes: int = 1) -> CacheStats:
        """Return the figures, where what the room counts takes `unit_bytes` each."""
        return CacheStats(
            resident=len(self._order),
            used_bytes=self._room.num_used * unit_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def check(self) -> None:
        """Assert that room is taken for what is here or on its way, and for nothing else."""
        assert self._reserved <= self._order.keys(), "what is on its way has no room"
        self._room.check(self._order)

    def _remove(self, digest: str) -> None:
        del self._order[digest]
        self._room.release(digest)
