"""One memory tier: which adapters it holds, and which it let go for others."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from loramux_server.lora.eviction import Eviction
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import CacheStats


class Room(Protocol):
    """What a tier is made of: rows or bytes."""

    capacity: int
    num_used: int

    def allocate(self, key: str, size: int) -> bool:
        """Give `key` so much; False, and no change, if it is not there."""

    def release(self, key: str) -> None:
        """Take back what `key` has."""

    def victims(self, size: int, order: Iterable[str], pinned: Collection[str]) -> list[str] | None:
        """Return who has to go before `size` can be allocated; None if it is nobody's going."""

    def check(self, keys: Collection[str]) -> None:
        """Assert that `keys` have something, and nobody else."""


class MemoryTier:
    """Holds adapters, as many as there is room for."""

    def __init__(
        self, room: Room, size_of: Callable[[AdapterSource], int], eviction: Eviction
    ) -> None:
        """Make an empty tier.

        Args:
            room: What its adapters take.
            size_of: How much of it an adapter takes.
            eviction: Who goes first.
        """
        self._room = room
        self._size_of = size_of
        self._eviction = eviction
        self._holders: dict[str, tuple[str, int]] = {}
        """Digest -> tenant and room of each adapter that has room here."""
        self._reserved: set[str] = set()
        """Those of them that are on their way."""
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._holders and digest not in self._reserved

    def digests(self) -> set[str]:
        """Return what is here."""
        return self._holders.keys() - self._reserved

    @property
    def capacity(self) -> int:
        """All the room that there is."""
        return self._room.capacity

    @property
    def holders(self) -> Mapping[str, tuple[str, int]]:
        """Digest -> tenant and room of each adapter that is here or on its way."""
        return self._holders

    def size_of(self, source: AdapterSource) -> int:
        """Return the room that an adapter takes."""
        return self._size_of(source)

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
            self._eviction.used(digest)

    def reserve(self, source: AdapterSource, pinned: Collection[str]) -> list[str] | None:
        """Take room for an adapter that is to come.

        Args:
            source: The adapter.
            pinned: Adapters that have to stay.

        Returns:
            Those that went to make the room; None, and no change, if there can be no room.
        """
        size = self._size_of(source)
        evicted = self._room.victims(size, self._eviction.order(), pinned)
        if evicted is None:
            return None
        for digest in evicted:
            self.evict(digest)
        has_room = self._room.allocate(source.digest, size)
        assert has_room, "the right ones went, and still there is no room"
        self._holders[source.digest] = (source.tenant, size)
        self._eviction.came(source.digest, size)
        self._reserved.add(source.digest)
        return evicted

    def commit(self, digest: str, seconds: float) -> None:
        """Note that an adapter that was on its way is here, and what it took to bring it."""
        self._reserved.remove(digest)
        self._eviction.loaded(digest, seconds)

    def abandon(self, digest: str) -> None:
        """Give back the room of an adapter that will not come."""
        self._reserved.remove(digest)
        self._remove(digest, is_evicted=False)

    def evict(self, digest: str, *, makes_room: bool = True) -> None:
        """Let an adapter go, so that it `makes_room` for another or because it is not needed."""
        assert digest in self, "what is on its way cannot go"
        self._remove(digest, is_evicted=makes_room)
        self._evictions += 1

    def stats(self, unit_bytes: int = 1) -> CacheStats:
        """Return the figures, where what the room counts takes `unit_bytes` each."""
        return CacheStats(
            resident=len(self._holders),
            used_bytes=self._room.num_used * unit_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def check(self) -> None:
        """Assert that room is taken for what is here or on its way, and for nothing else."""
        assert self._reserved <= self._holders.keys(), "what is on its way has no room"
        assert self._holders.keys() == set(self._eviction.order()), "the order lacks some"
        self._room.check(self._holders)

    def _remove(self, digest: str, *, is_evicted: bool) -> None:
        del self._holders[digest]
        self._eviction.went(digest, is_evicted=is_evicted)
        self._room.release(digest)
