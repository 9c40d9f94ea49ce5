"""One memory tier of the adapter cache: what it holds, and eviction."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from loramux_server.lora.eviction import Eviction
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import CacheStats


class Allocator(Protocol):
    """The allocator of a tier, which counts rank rows or bytes."""

    capacity: int
    num_used: int

    def allocate(self, key: str, size: int) -> bool:
        """Allocate `size` to `key`; return False, unchanged, if there is no room."""

    def release(self, key: str) -> None:
        """Free the allocation of `key`."""

    def victims(self, size: int, order: Iterable[str], pinned: Collection[str]) -> list[str] | None:
        """Return the keys to evict so that `size` can be allocated; None if that is impossible."""

    def check(self, keys: Collection[str]) -> None:
        """Assert that exactly `keys` have allocations."""


class MemoryTier:
    """Holds adapters within a fixed capacity."""

    def __init__(
        self, allocator: Allocator, size_of: Callable[[AdapterSource], int], eviction: Eviction
    ) -> None:
        """Make an empty tier.

        Args:
            allocator: The allocator.
            size_of: Returns the size of an adapter, in units of the allocator.
            eviction: The eviction policy.
        """
        self._allocator = allocator
        self._size_of = size_of
        self._eviction = eviction
        self._allocations: dict[str, tuple[str, int]] = {}
        """Digest -> tenant and size of each adapter that has room here."""
        self._reserved: set[str] = set()
        """Those of them whose loads are in flight."""
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._allocations and digest not in self._reserved

    def digests(self) -> set[str]:
        """Return the digests that are resident."""
        return self._allocations.keys() - self._reserved

    @property
    def capacity(self) -> int:
        """Total capacity, in units of the allocator."""
        return self._allocator.capacity

    @property
    def allocations(self) -> Mapping[str, tuple[str, int]]:
        """Digest -> tenant and size of each adapter that is resident or being loaded."""
        return self._allocations

    def size_of(self, source: AdapterSource) -> int:
        """Return the size of an adapter, in units of the allocator."""
        return self._size_of(source)

    def fits(self, source: AdapterSource) -> bool:
        """Return whether `source` fits the tier when it is empty."""
        return self._size_of(source) <= self._allocator.capacity

    def look_up(self, digest: str) -> bool:
        """Return whether a requested adapter is resident, and count the hit or miss."""
        is_hit = digest in self
        self._hits += is_hit
        self._misses += not is_hit
        return is_hit

    def touch(self, digest: str) -> None:
        """Record a use of an adapter, if it is resident."""
        if digest in self:
            self._eviction.on_use(digest)

    def reserve(self, source: AdapterSource, pinned: Collection[str]) -> list[str] | None:
        """Reserve room for an adapter that is about to be loaded.

        Args:
            source: The adapter.
            pinned: Digests that must stay.

        Returns:
            The digests that were evicted for it; None, and no change, if there can be no room.
        """
        size = self._size_of(source)
        evicted = self._allocator.victims(size, self._eviction.order(), pinned)
        if evicted is None:
            return None
        for digest in evicted:
            self.evict(digest)
        has_room = self._allocator.allocate(source.digest, size)
        assert has_room, "no room after evicting the chosen adapters"
        self._allocations[source.digest] = (source.tenant, size)
        self._eviction.on_allocate(source.digest, size)
        self._reserved.add(source.digest)
        return evicted

    def commit(self, digest: str, seconds: float) -> None:
        """Record that the load of an adapter is done, and its duration."""
        self._reserved.remove(digest)
        self._eviction.on_load(digest, seconds)

    def abandon(self, digest: str) -> None:
        """Free the room of an adapter whose load failed."""
        self._reserved.remove(digest)
        self._remove(digest, is_evicted=False)

    def evict(self, digest: str, *, makes_room: bool = True) -> None:
        """Remove an adapter: if `makes_room` in favour of another, else because it is obsolete."""
        assert digest in self, "an adapter that is loading cannot be removed"
        self._remove(digest, is_evicted=makes_room)
        self._evictions += 1

    def stats(self, unit_bytes: int = 1) -> CacheStats:
        """Return the tier's statistics, where a unit of the allocator has `unit_bytes`."""
        return CacheStats(
            resident=len(self._allocations),
            used_bytes=self._allocator.num_used * unit_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def check(self) -> None:
        """Assert that exactly the resident and loading adapters have room."""
        assert self._reserved <= self._allocations.keys(), "an adapter that is loading has no room"
        assert self._allocations.keys() == set(self._eviction.order()), (
            "eviction order is incomplete"
        )
        self._allocator.check(self._allocations)

    def _remove(self, digest: str, *, is_evicted: bool) -> None:
        del self._allocations[digest]
        self._eviction.on_remove(digest, is_evicted=is_evicted)
        self._allocator.release(digest)
