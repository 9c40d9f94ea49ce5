"""Which adapters rest where: the policy of the host and device tiers.

Knows nothing of tensors, files or time. It is told which adapters requests wait for and use; it
says which loads to start and what to let go. A tier is an LRU by bytes; what is leased never moves.
"""

import enum
from collections import OrderedDict
from dataclasses import dataclass

from loramux_server.engine.messages import AdapterSource, CacheStats
from loramux_server.lora.row_allocator import RowAllocator, rows_of


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


@dataclass(slots=True)
class _Entry:
    """What is known of an adapter that somebody wants or that some tier holds."""

    source: AdapterSource
    num_waiting: int = 0
    num_leases: int = 0
    loading: Tier | None = None
    host: bool = False
    row: int | None = None
    """First row on the device, once it is resident there."""


@dataclass(slots=True)
class _Counts:
    hits: int = 0
    misses: int = 0
    evictions: int = 0


class AdapterCache:
    """Decides what the device's rank rows and the host's bytes hold."""

    def __init__(
        self, *, device_rows: int, row_bytes: int, host_bytes: int, weight_bytes: int,
        max_loads: int = 2,
    ) -> None:  # fmt: skip
        """Make an empty cache.

        Args:
            device_rows: Rank rows on the device.
            row_bytes: Bytes of one rank row over all layers, for the figures.
            host_bytes: Limit of the host tier.
            weight_bytes: Bytes of one weight in the host tier.
            max_loads: Loads in flight at once.
        """
        self.rows = RowAllocator(device_rows)
        self._row_bytes = row_bytes
        self._host_limit = host_bytes
        self._host_used = 0
        self._weight_bytes = weight_bytes
        self._max_loads = max_loads
        self._entries: dict[str, _Entry] = {}
        self._wanted: OrderedDict[str, None] = OrderedDict()
        self._device: OrderedDict[str, int] = OrderedDict()
        """Digest -> first row, resident or being loaded; least recently used first."""
        self._host: OrderedDict[str, int] = OrderedDict()
        """Digest -> bytes, packed or being packed; least recently used first."""
        self._counts = {Tier.DEVICE: _Counts(), Tier.HOST: _Counts()}
        self._moved: dict[str, Tier] = {}
        self._freed: list[str] = []

    # Requests

    @property
    def num_leases(self) -> int:
        """Leases that running requests hold."""
        return sum(entry.num_leases for entry in self._entries.values())

    @property
    def num_waiting(self) -> int:
        """Requests that wait for an adapter."""
        return sum(entry.num_waiting for entry in self._entries.values())

    def fits(self, source: AdapterSource) -> bool:
        """Return whether `source` could ever be resident."""
        return rows_of(source.rank) <= self.rows.num_rows and (
            self._bytes(source) <= self._host_limit
        )

    def want(self, source: AdapterSource) -> None:
        """Note that one more request waits for `source`, and count the hit or miss."""
        entry = self._entries.setdefault(source.digest, _Entry(source))
        entry.num_waiting += 1
        self._wanted.setdefault(source.digest)
        if entry.row is not None:
            self._counts[Tier.DEVICE].hits += 1
        else:
            self._counts[Tier.DEVICE].misses += 1
            count = self._counts[Tier.HOST]
            if entry.host:
                count.hits += 1
            else:
                count.misses += 1

    def unwant(self, digest: str) -> None:
        """Note that one request waits no longer: it was cancelled or it failed."""
        entry = self._entries[digest]
        entry.num_waiting -= 1
        if not entry.num_waiting:
            del self._wanted[digest]
        self._forget_if_idle(digest)

    def acquire(self, digest: str) -> bool:
        """Turn one wait for `digest` into a lease; False, and no change, if it is not resident."""
        entry = self._entries[digest]
        if entry.row is None:
            return False
        entry.num_leases += 1
        self._device.move_to_end(digest)
        if digest in self._host:
            self._host.move_to_end(digest)
        self.unwant(digest)
        return True

    def release(self, digest: str) -> None:
        """Give back one lease."""
        entry = self._entries[digest]
        assert entry.num_leases > 0, "released more often than acquired"
        entry.num_leases -= 1

    def row_of(self, digest: str) -> int:
        """Return the first row of an adapter that is leased."""
        entry = self._entries[digest]
        assert entry.row is not None and entry.num_leases, "only a leased adapter stays in place"
        return entry.row

    # Loads

    def plan_loads(self, urgent: str | None = None) -> list[LoadOrder]:
        """Return the loads to start now, in the order in which requests wait.

        Args:
            urgent: An adapter whose request was passed over long enough: it comes first and may
                take the place of adapters that others wait for.
        """
        orders: list[LoadOrder] = []
        in_flight = sum(entry.loading is not None for entry in self._entries.values())
        digests = list(self._wanted)
        if urgent in self._wanted:
            digests.sort(key=lambda digest: digest != urgent)
        has_room = True
        for digest in digests:
            if in_flight >= self._max_loads:
                break
            entry = self._entries[digest]
            if entry.row is not None or entry.loading:
                continue
            if not entry.host:
                order = self._plan_host(entry, displaces=digest == urgent)
            elif has_room:
                order = self._plan_device(entry, displaces=digest == urgent)
                # First come, first served: nobody behind takes the room that this one lacks.
                has_room = order is not None
            else:
                order = None
            if order:
                entry.loading = order.tier
                orders.append(order)
                in_flight += 1
        return orders

    def loaded(self, order: LoadOrder) -> None:
        """Note that `order` is done: the adapter is in that tier."""
        digest = order.source.digest
        entry = self._entries[digest]
        entry.loading = None
        if order.tier is Tier.DEVICE:
            entry.row = order.row
        else:
            entry.host = True
        self._moved[digest] = order.tier

    def failed(self, order: LoadOrder) -> None:
        """Note that `order` did not succeed, and give back what was reserved for it."""
        digest = order.source.digest
        entry = self._entries[digest]
        entry.loading = None
        if order.tier is Tier.DEVICE:
            self.rows.release(self._device.pop(digest))
        else:
            self._host_used -= self._host.pop(digest)
        self._forget_if_idle(digest)

    def drop(self, digest: str) -> None:
        """Let go of an adapter that is no longer registered, unless it is in use."""
        entry = self._entries.get(digest)
        if entry is None or entry.num_leases or entry.num_waiting or entry.loading:
            return
        if entry.row is not None:
            self._evict_device(digest)
        if digest in self._host:
            self._evict_host(digest)

    # Figures

    def take_moved(self) -> dict[str, Tier]:
        """Return, once, the fastest tier of each adapter that moved."""
        moved, self._moved = self._moved, {}
        return moved

    def take_freed(self) -> list[str]:
        """Return, once, the adapters whose packed bytes lost their place in host memory."""
        freed, self._freed = self._freed, []
        return freed

    def stats(self, tier: Tier) -> CacheStats:
        """Return the figures of `tier`."""
        is_device = tier is Tier.DEVICE
        counts = self._counts[tier]
        return CacheStats(
            resident=len(self._device if is_device else self._host),
            used_bytes=self.rows.num_used * self._row_bytes if is_device else self._host_used,
            hits=counts.hits,
            misses=counts.misses,
            evictions=counts.evictions,
        )

    def check(self) -> None:
        """Assert that rows, bytes and entries agree."""
        self.rows.check()
        assert self.rows.num_used == sum(
            rows_of(self._entries[digest].source.rank) for digest in self._device
        ), "rows leaked"
        assert self._host_used == sum(self._host.values()) <= self._host_limit, "bytes leaked"
        for digest, entry in self._entries.items():
            assert (digest in self._wanted) == (entry.num_waiting > 0), "waits are miscounted"
            assert not entry.num_leases or entry.row is not None, "leased but not resident"

    def _plan_host(self, entry: _Entry, *, displaces: bool) -> LoadOrder | None:
        needed = self._bytes(entry.source)
        idle = [digest for digest in self._host if not self._entries[digest].loading]
        for digest in idle:
            if self._host_used + needed <= self._host_limit:
                break
            # What waits for its turn on the device keeps its place here.
            waits = self._entries[digest].num_waiting and self._entries[digest].row is None
            if displaces or not waits:
                self._evict_host(digest)
        if self._host_used + needed > self._host_limit:
            return None
        self._host[entry.source.digest] = needed
        self._host_used += needed
        return LoadOrder(entry.source, Tier.HOST, -1)

    def _plan_device(self, entry: _Entry, *, displaces: bool) -> LoadOrder | None:
        idle = [
            digest
            for digest in self._device
            if not (other := self._entries[digest]).num_leases
            and not other.loading
            and (displaces or not other.num_waiting)
        ]
        spare = sum(rows_of(self._entries[digest].source.rank) for digest in idle)
        free = self.rows.num_rows - self.rows.num_used
        if free + spare < rows_of(entry.source.rank):
            return None
        while (row := self.rows.allocate(entry.source.rank)) is None and idle:
            self._evict_device(idle.pop(0))
        if row is None:
            return None
        self._device[entry.source.digest] = row
        return LoadOrder(entry.source, Tier.DEVICE, row)

    def _evict_device(self, digest: str) -> None:
        self.rows.release(self._device.pop(digest))
        entry = self._entries[digest]
        entry.row = None
        self._counts[Tier.DEVICE].evictions += 1
        self._moved[digest] = Tier.HOST if entry.host else Tier.STORED
        self._forget_if_idle(digest)

    def _evict_host(self, digest: str) -> None:
        self._host_used -= self._host.pop(digest)
        entry = self._entries[digest]
        entry.host = False
        self._freed.append(digest)
        self._counts[Tier.HOST].evictions += 1
        if entry.row is None:
            self._moved[digest] = Tier.STORED
        self._forget_if_idle(digest)

    def _forget_if_idle(self, digest: str) -> None:
        entry = self._entries[digest]
        if not (
            entry.num_waiting or entry.num_leases or digest in self._device or digest in self._host
        ):
            del self._entries[digest]

    def _bytes(self, source: AdapterSource) -> int:
        return source.num_weights * self._weight_bytes
