"""The cache policy for adapters in the host and device tiers.

Knows nothing of tensors, files or time. It is told which adapters requests wait for and use, and
decides which loads to start and what to evict. The cost of a step does not grow with the number of
resident adapters.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from loramux_server.lora.byte_budget import ByteBudget
from loramux_server.lora.eviction import EVICTIONS
from loramux_server.lora.load_line import LoadLine
from loramux_server.lora.memory_tier import MemoryTier
from loramux_server.lora.row_allocator import RowAllocator, RowSize
from loramux_server.lora.shares import protected_adapters
from loramux_server.lora.use import Use, Waiter
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import CacheStats

_ANY = Waiter()


class Tier(enum.StrEnum):
    """A place that can hold the weights of an adapter."""

    STORED = "stored"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A load to start now: pack the file in host memory, or copy the packed bytes to the device."""

    source: AdapterSource
    tier: Tier
    row: int
    """First row on the device; -1 for the host."""
    evicted: list[str]
    """Digests that were evicted from that tier to make room."""


class AdapterCache:
    """Decides what the device's rank rows and the host's bytes hold."""

    def __init__(
        self,
        *,
        device_rows: int,
        row_size: RowSize,
        host_bytes: int,
        max_loads: int = 2,
        eviction: str = "lru",
        max_tenant_share: float = 1.0,
    ) -> None:
        """Make an empty cache.

        Args:
            device_rows: Rank rows on the device.
            row_size: Size of a rank row.
            host_bytes: Limit of the host tier.
            max_loads: Most loads in flight.
            eviction: A name in EVICTIONS.
            max_tenant_share: Fraction of the device that one tenant's adapters may have while
                others need it.
        """
        self.rows = RowAllocator(device_rows)
        self._row_bytes = row_size.num_bytes
        self._device = MemoryTier(
            self.rows,
            lambda source: row_size.rows_of(source.rank, source.item_bytes, source.edit_bytes),
            EVICTIONS[eviction](),
        )
        self._host = MemoryTier(
            ByteBudget(host_bytes), lambda source: source.num_bytes, EVICTIONS[eviction]()
        )
        self._tenant_rows = self.rows.capacity * max_tenant_share
        self._max_loads = max_loads
        self._uses: dict[str, Use] = {}
        self._loading: set[str] = set()
        self._line = LoadLine(self._uses)

    # Requests

    @property
    def num_leases(self) -> int:
        """Leases held by running requests."""
        return sum(use.num_leases for use in self._uses.values())

    @property
    def num_waiting(self) -> int:
        """Requests that wait for an adapter."""
        return sum(use.num_waiting for use in self._uses.values())

    def fits(self, source: AdapterSource) -> bool:
        """Return whether `source` fits both tiers when they are empty."""
        return self._device.fits(source) and self._host.fits(source)

    def want(self, source: AdapterSource, waiter: Waiter = _ANY) -> None:
        """Record that one more request waits for `source`, and count the hit or miss."""
        self._uses.setdefault(source.digest, Use(source)).waiting[waiter] += 1
        self._line.count(waiter, 1)
        if not self._device.look_up(source.digest):
            self._host.look_up(source.digest)
            self._line.add(source.digest)

    def unwant(self, digest: str, waiter: Waiter = _ANY) -> None:
        """Record that one request stopped waiting: cancelled, failed, or now with a lease."""
        use = self._uses[digest]
        assert use.waiting[waiter], "it did not wait"
        use.waiting[waiter] -= 1
        self._line.count(waiter, -1)
        if not use.waiting[waiter]:
            del use.waiting[waiter]
        if not use.waiting:
            self._line.discard(digest)
            self._forget_if_idle(digest)

    def acquire(self, digest: str, waiter: Waiter = _ANY) -> bool:
        """Turn one wait for `digest` into a lease; return False, unchanged, if not resident."""
        if digest not in self._device:
            return False
        self._uses[digest].num_leases += 1
        self._device.touch(digest)
        self._host.touch(digest)
        self.unwant(digest, waiter)
        return True

    def release(self, digest: str) -> None:
        """Release one lease."""
        use = self._uses[digest]
        assert use.num_leases > 0, "released more often than acquired"
        use.num_leases -= 1
        self._forget_if_idle(digest)

    def row_of(self, digest: str) -> int:
        """Return the first row of a leased adapter."""
        assert self._uses[digest].num_leases, "only a leased adapter stays in place"
        return self.rows.start_of(digest)

    # Pins

    def pin(self, source: AdapterSource) -> None:
        """Load `source` to the device, and evict it only if a request cannot get room otherwise."""
        if self.fits(source):
            self._uses.setdefault(source.digest, Use(source)).is_pinned = True

    def unpin(self, digest: str) -> None:
        """Make an adapter evictable again; no error if it is not pinned."""
        if use := self._uses.get(digest):
            use.is_pinned = False
            self._forget_if_idle(digest)

    # Loads

    def plan_loads(self, urgent: str | None = None) -> list[LoadOrder]:
        """Return the loads to start now, in the order of `LoadLine`.

        Args:
            urgent: An adapter whose request was overtaken too often: it goes first, and may evict
                adapters that others wait for.
        """
        if len(self._loading) == self._max_loads:
            return []
        orders: list[LoadOrder] = []
        full: list[Tier] = []
        for digest in self._line.in_order(urgent):
            if len(self._loading) == self._max_loads or len(full) == 2:
                break
            tier = Tier.DEVICE if digest in self._host else Tier.HOST
            if tier in full or digest in self._loading:
                continue
            if order := self._plan(digest, tier, displaces=digest == urgent):
                orders.append(order)
            elif digest == urgent:
                # Loads in flight cannot be evicted: start no more that would block the urgent one.
                break
            else:
                # First come, first served: later ones must not take the room that this one needs.
                full.append(tier)
        for digest in self._missing_pins():
            tier = Tier.DEVICE if digest in self._host else Tier.HOST
            if len(self._loading) == self._max_loads or tier in full:
                break
            if order := self._plan(digest, tier, displaces=False):
                orders.append(order)
        return orders

    def loaded(self, order: LoadOrder, seconds: float = 0.0) -> None:
        """Record that `order` is done, and its duration: the adapter is now in that tier."""
        digest = order.source.digest
        self._tier(order.tier).commit(digest, seconds)
        if order.tier is Tier.DEVICE:
            self._line.discard(digest)
        self._landed(digest)

    def failed(self, order: LoadOrder) -> None:
        """Record that `order` failed, and free what was reserved for it."""
        self._tier(order.tier).abandon(order.source.digest)
        # A pin would retry, and fail, at once.
        self._uses[order.source.digest].is_pinned = False
        self._landed(order.source.digest)

    def drop(self, digest: str) -> bool:
        """Remove an adapter that is no longer registered; return False if it is in use."""
        if digest in self._uses:
            return False
        for tier in (self._device, self._host):
            if digest in tier:
                tier.evict(digest, makes_room=False)
        return True

    # Statistics

    def held(self, tier: Tier) -> set[str]:
        """Return the digests that `tier` holds, without loads in flight."""
        return self._tier(tier).digests()

    def stats(self, tier: Tier) -> CacheStats:
        """Return the statistics of `tier`."""
        return self._tier(tier).stats(self._row_bytes if tier is Tier.DEVICE else 1)

    def check(self) -> None:
        """Assert that waits, leases, loads and tiers are consistent."""
        self._device.check()
        self._host.check()
        assert self._loading <= self._uses.keys(), "a load for nobody"
        for digest, use in self._uses.items():
            is_used = use.num_waiting or use.num_leases or use.is_pinned or digest in self._loading
            assert is_used, "it is kept for nobody"
            assert not use.num_leases or digest in self._device, "leased but not resident"
            is_in_line = use.num_waiting > 0 and digest not in self._device
            assert (digest in self._line) == is_in_line, "waits are miscounted"
        self._line.check()

    def _tier(self, tier: Tier) -> MemoryTier:
        return self._device if tier is Tier.DEVICE else self._host

    def _plan(self, digest: str, tier: Tier, *, displaces: bool) -> LoadOrder | None:
        """Reserve room in `tier`; return None, unchanged, if there can be none."""
        source = self._uses[digest].source
        for kept in self._choices(source, tier, displaces=displaces):
            evicted = self._tier(tier).reserve(source, kept)
            if evicted is not None:
                break
        else:
            return None
        self._loading.add(digest)
        if tier is Tier.HOST:
            return LoadOrder(source, tier, -1, evicted)
        for displaced in self._uses.keys() & evicted:
            if self._uses[displaced].waiting:
                self._line.put_first(displaced)
        return LoadOrder(source, tier, self.rows.start_of(digest), evicted)

    def _choices(self, source: AdapterSource, tier: Tier, *, displaces: bool) -> Iterator[set[str]]:
        """Yield sets of adapters that `tier` must keep when `source` is loaded, strictest first."""
        kept = self._pinned(tier, displaces=displaces)
        if tier is Tier.DEVICE and self._tenant_rows < self.rows.capacity:
            size = self._device.size_of(source)
            yield kept | protected_adapters(
                self._device.allocations, source.tenant, size, self._tenant_rows
            )
        yield kept
        if not self._uses[source.digest].is_only_pinned:
            # A request takes precedence over pins without requests, or it could wait forever.
            pins = {other for other in kept if self._is_only_pinned(other)}
            if pins:
                yield kept - pins

    def _pinned(self, tier: Tier, *, displaces: bool) -> set[str]:
        """Return the digests that `tier` must keep; with `displaces`, waiting does not protect."""
        if tier is Tier.HOST:
            # Adapters queued for the device stay in the host tier.
            return self._loading | (set() if displaces else set(self._line))
        resident = self._uses.keys() - set(self._line)
        if displaces:
            resident = {digest for digest in resident if self._uses[digest].num_leases}
        return self._loading | resident

    def _missing_pins(self) -> list[str]:
        """Return pinned digests without requests that are neither on the device nor loading."""
        return [
            digest
            for digest, use in self._uses.items()
            if use.is_only_pinned and digest not in self._device and digest not in self._loading
        ]

    def _is_only_pinned(self, digest: str) -> bool:
        use = self._uses.get(digest)
        return use is not None and use.is_only_pinned and digest not in self._loading

    def _landed(self, digest: str) -> None:
        self._loading.remove(digest)
        self._forget_if_idle(digest)

    def _forget_if_idle(self, digest: str) -> None:
        use = self._uses[digest]
        if not (use.waiting or use.num_leases or use.is_pinned or digest in self._loading):
            del self._uses[digest]
