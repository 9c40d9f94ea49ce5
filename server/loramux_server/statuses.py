"""Runtime status of adapters by digest: which memory tier holds them, and how they are used."""

import asyncio
import datetime
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loramux_server.wire.messages import Report

STORED = "stored"
DEVICE = "device"


@dataclass(slots=True)
class Status:
    """Status of one digest since the server started."""

    tier: str = STORED
    """The fastest tier that holds it now."""
    is_loading: bool = False
    load_failure: str = ""
    """Why the last load failed, if it did."""
    loads: int = 0
    """Loads to the device."""

    @property
    def is_in_memory(self) -> bool:
        """Whether a memory tier holds it or is loading it."""
        return self.is_loading or self.tier != STORED


@dataclass(slots=True)
class Usage:
    """Use of one tenant's versions with one digest since the server started.

    Other tenants may have the same content; a tenant must not learn of their use of it.
    """

    requests: int = 0
    hits: int = 0
    """Requests that found it on the device."""
    last_used: datetime.datetime | None = None


class Statuses:
    """Digest -> status, and usage by tenant. Lives on the event loop."""

    def __init__(self, is_registered: Callable[[str], bool] = lambda digest: True) -> None:
        """Begin empty. Digests that are neither registered nor in memory are not kept."""
        self._is_registered = is_registered
        self._known: dict[str, Status] = {}
        self._on_device: OrderedDict[str, None] = OrderedDict()
        """Digests on the device, the most recently requested last."""
        self._leaving: dict[str, asyncio.Event] = {}
        """Digests that the engine was told to drop, until it has."""
        self._usage: dict[str, dict[str, Usage]] = {}
        """Digest -> tenant -> usage."""
        self._asked: Counter[str] = Counter()
        """Digest of an adapter or a mix -> requests in progress."""
        self.on_move: Callable[[str], None] = lambda digest: None
        """Called with a digest whose tier or load changed."""

    def of(self, digest: str) -> Status:
        """Return the status of a digest; do not modify it."""
        return self._known.get(digest) or Status()

    def usage_of(self, digest: str, tenant: str) -> Usage:
        """Return the usage of a digest by `tenant`; do not modify it."""
        return self._usage.get(digest, {}).get(tenant) or Usage()

    @contextmanager
    def used(self, digest: str, tenant: str, within: str | None = None) -> Iterator[None]:
        """Count a request that uses a digest for as long as the block runs.

        Args:
            digest: The adapter that it uses.
            tenant: The adapter's tenant.
            within: Digest of the mix that the adapter is part of, if any.
        """
        where = within or digest
        usage = self._usage.setdefault(digest, {}).setdefault(tenant, Usage())
        usage.requests += 1
        usage.hits += self.of(where).tier == DEVICE
        usage.last_used = datetime.datetime.now(datetime.UTC)
        self._asked[where] += 1
        self._touch(where)
        try:
            yield
        finally:
            usage.last_used = datetime.datetime.now(datetime.UTC)
            self._touch(where)
            self._asked[where] -= 1
            if not self._asked[where]:
                del self._asked[where]

    def on_device(self) -> list[str]:
        """Return the digests on the device: those in use by requests, then the others.

        Within each group, the most recently requested come first. Thread-safe.
        """
        # Copied at once, so changes by the event loop meanwhile do not matter.
        held = list(reversed(self._on_device))
        asked = set(self._asked)
        now = [digest for digest in held if digest in asked]
        return now + [digest for digest in held if digest not in asked]

    def waited_for(self) -> list[str]:
        """Return the digests that requests use and the device lacks, the oldest first.

        Thread-safe.
        """
        return [digest for digest in list(self._asked) if self.of(digest).tier != DEVICE]

    def report(self, report: Report) -> None:
        """Process the report of one engine step."""
        if not (report.loading or report.loads or report.failed_loads or report.tiers):
            return
        for digest in report.loading:
            self._known.setdefault(digest, Status()).is_loading = True
        for load in report.loads:
            status = self._known.setdefault(load.digest, Status())
            status.is_loading, status.load_failure = False, ""
            status.loads += load.tier == DEVICE
        for digest, why in report.failed_loads.items():
            status = self._known.setdefault(digest, Status())
            status.is_loading, status.load_failure = False, why
        for digest, tier in report.tiers.items():
            self._known.setdefault(digest, Status()).tier = tier
            self._hold(digest, tier)
            if tier == STORED:
                self._left(digest)
        for digest in {*report.loading, *report.failed_loads, *report.tiers}:
            self._moved(digest)

    def forget(self, digest: str, *, is_leaving: bool) -> None:
        """Forget a digest that is no longer registered, once it is in no memory tier.

        Args:
            digest: The digest.
            is_leaving: Whether the engine was told to drop it; if not, the engine holds nothing.
        """
        self._usage.pop(digest, None)
        if is_leaving:
            self._leaving.setdefault(digest, asyncio.Event())
        elif not self.of(digest).is_in_memory:
            self._known.pop(digest, None)

    async def has_left(self, digest: str) -> None:
        """Wait until the engine has dropped a digest that it was told to drop."""
        if event := self._leaving.get(digest):
            await event.wait()

    def engine_died(self) -> None:
        """Record that nothing is in memory any more."""
        self._on_device.clear()
        for digest, status in list(self._known.items()):
            if status.is_in_memory:
                status.tier, status.is_loading = STORED, False
                self._moved(digest)
        for digest in list(self._leaving):
            self._left(digest)

    def _hold(self, digest: str, tier: str) -> None:
        if tier != DEVICE:
            self._on_device.pop(digest, None)
        elif digest not in self._on_device:
            self._on_device[digest] = None
            # A prefetched adapter that nobody requests yet ranks below those that were requested.
            self._on_device.move_to_end(digest, last=digest in self._asked)

    def _touch(self, digest: str) -> None:
        if digest in self._on_device:
            self._on_device.move_to_end(digest)

    def _moved(self, digest: str) -> None:
        if not (self.of(digest).is_in_memory or self._is_registered(digest)):
            self._known.pop(digest, None)
        self.on_move(digest)

    def _left(self, digest: str) -> None:
        if event := self._leaving.pop(digest, None):
            event.set()
