"""Resident adapters: their weights in both memory tiers, and the loads that bring them there."""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import torch

from loramux_server.engine.fault import explained
from loramux_server.kernels.cpu.parallel import without_team
from loramux_server.lora.adapter_cache import AdapterCache, LoadOrder, Tier
from loramux_server.lora.edits import Edits
from loramux_server.lora.packed import PackedAdapter
from loramux_server.lora.reloads import Reloads
from loramux_server.lora.segments import Residence
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import CacheStats, Drop, Load, Pin, Unpin

Clock = Callable[[], float]
_SHARE = 0.5
"""Fraction of a step's time for which loads have the cores after it."""
_MAX_WAIT_SECONDS = 0.1
_LONG_SECONDS = 2.0
"""A load that takes longer waits for something other than cores."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A load in progress."""

    order: LoadOrder
    future: Future[Any]
    begin: float


@dataclass(frozen=True, slots=True)
class FailedLoad:
    """A load that failed."""

    source: AdapterSource
    reason: str
    """A name of `loramux.v1.ErrorReason` without its prefix."""
    why: str
    """The message for callers."""

    @staticmethod
    def of(source: AdapterSource, error: BaseException) -> "FailedLoad":
        """Explain why a load failed with `error`; details of a bug go to the log."""
        return FailedLoad(source, *explained(error, f"loading {source.digest}"))


@dataclass(frozen=True, slots=True)
class Landed:
    """The loads that ended since the last step."""

    loads: list[Load] = field(default_factory=list)
    failed: list[FailedLoad] = field(default_factory=list)


_SECOND = 10
"""Niceness of threads that run after others."""


def loader_threads(
    count: int = 2, name: str = "load", *, device: torch.device | None = None
) -> ThreadPoolExecutor:
    """Return the threads for loads: they take little CPU time from a running step.

    Args:
        count: How many.
        name: What they are called.
        device: Where steps run; None means the CPU.
    """
    steps_take_cores = device is None or device.type == "cpu"
    return ThreadPoolExecutor(
        count,
        thread_name_prefix=name,
        initializer=_use_idle_priority if steps_take_cores else _lower_priority,
    )


def _use_idle_priority() -> None:
    """Keep the calling thread from using others, and schedule it as SCHED_IDLE.

    A step that wakes up preempts such a thread at once. An ordinary thread, even of the lowest
    priority, would first finish its time slice, and the whole step would wait for that core.
    """
    without_team()
    if sys.platform == "linux":  # where a thread has a policy of its own
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def _lower_priority() -> None:
    """Keep the calling thread from using others, and lower its priority.

    With SCHED_IDLE it could be preempted for long while it holds a lock of the device's driver, for
    which the launches of a step would wait.
    """
    without_team()
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _SECOND)


class Loader(Protocol):
    """What loads adapters into memory; called on loader threads."""

    def load(self, source: AdapterSource) -> PackedAdapter:
        """Read an adapter into host memory."""

    def write(self, source: AdapterSource, row: int, adapter: PackedAdapter) -> Edits | None:
        """Copy `adapter`, which was loaded from `source`, to rows of the device from `row` on.

        Returns:
            Its edits, which are not in rank rows, on the device.
        """

    def take_seals(self) -> dict[str, str]:
        """Return, once, the seals that loads computed: digest -> seal."""


class Residents:
    """Does what the cache decides: loads concurrently with steps, and evicts."""

    def __init__(
        self,
        *,
        cache: AdapterCache,
        loader: Loader,
        executor: Executor,
        wake: Callable[[], None],
        clock: Clock = time.perf_counter,
    ) -> None:
        """Begin with empty tiers.

        Args:
            cache: Decides what to load and evict.
            loader: Does the work of a load, on `executor`.
            executor: Runs loads concurrently with steps.
            wake: Called from `executor` when a load is done, so that an idle owner steps again.
            clock: Seconds, monotonic.
        """
        self._cache = cache
        self._loader = loader
        self._executor = executor
        self._wake = wake
        self._clock = clock
        self._packed: dict[str, PackedAdapter] = {}
        self._residence: dict[str, Residence] = {}
        self._flights: dict[str, _Flight] = {}
        self._mixes: dict[str, AdapterSource] = {}
        """Mixes in memory."""
        self._moved: set[str] = set()
        self._load_starts: list[str] = []
        self._reloads = {tier: Reloads() for tier in (Tier.HOST, Tier.DEVICE)}
        self._leaving: set[str] = set()
        """Digests to drop as soon as they are unused."""

    @property
    def has_landed(self) -> bool:
        """Whether `land` would find a finished load."""
        return any(flight.future.done() for flight in self._flights.values())

    def where(self, digest: str) -> Residence:
        """Return where the adapter of a running request is in memory."""
        residence = self._residence[digest]
        assert residence.row == self._cache.row_of(digest)
        return residence

    def start_loads(self, urgent: str | None) -> None:
        """Start what the cache orders; see `AdapterCache.plan_loads`."""
        for order in self._cache.plan_loads(urgent):
            held = self._residence if order.tier is Tier.DEVICE else self._packed
            for digest in order.evicted:
                del held[digest]
                self._forget_mix(digest)
            self._moved.update(order.evicted)
            begin = self._clock()
            reloads = self._reloads[order.tier]
            for digest in order.evicted:
                reloads.evicted(digest, begin)
            reloads.loads(order.source.digest, begin)
            future = self._submit(order)
            self._flights[order.source.digest] = _Flight(order, future, begin)
            self._load_starts.append(order.source.digest)
            future.add_done_callback(lambda _: self._wake())

    def yield_cores(self, seconds: float) -> None:
        """Leave the cores to the loads in progress, until one is done or their share is used up.

        Beside steps that use all cores they would hardly progress.

        Args:
            seconds: For how long the last step had the cores.
        """
        if not (seconds and self._flights):
            return
        started_after = self._clock() - _LONG_SECONDS
        futures = [each.future for each in self._flights.values() if each.begin > started_after]
        if futures:
            wait(futures, min(_SHARE * seconds, _MAX_WAIT_SECONDS), FIRST_COMPLETED)

    def land(self) -> Landed:
        """Process the loads that are done."""
        landed = Landed()
        for flight in [flight for flight in self._flights.values() if flight.future.done()]:
            order, source = flight.order, flight.order.source
            del self._flights[source.digest]
            if error := flight.future.exception():
                self._cache.failed(order)
                landed.failed.append(FailedLoad.of(source, error))
                continue
            if order.tier is Tier.HOST:
                self._packed[source.digest] = flight.future.result()
            else:
                packed, edits = self._packed[source.digest], flight.future.result()
                self._residence[source.digest] = packed.at(order.row, edits)
            if source.parts:
                self._mixes[source.digest] = source
            seconds = self._clock() - flight.begin
            self._cache.loaded(order, seconds)
            self._moved.add(source.digest)
            landed.loads.append(Load(order.tier, seconds, source.digest))
        return landed

    def handle(self, message: Drop | Pin | Unpin) -> None:
        """Drop, pin or unpin an adapter for the frontend."""
        if isinstance(message, Pin):
            self._cache.pin(message.adapter)
        elif isinstance(message, Unpin):
            self._cache.unpin(message.digest)
        else:
            self._leaving.update([message.digest, *self._mixes_of(message.digest)])

    def take_moved(self) -> dict[str, str]:
        """Return, once, the fastest tier of each adapter that moved.

        Adapters that the frontend dropped and that are unused by now are freed first.
        """
        self._let_go()
        moved, self._moved = self._moved, set()
        return {digest: str(self._tier_of(digest)) for digest in moved}

    def take_started(self) -> list[str]:
        """Return, once, the digests whose loads started."""
        started, self._load_starts = self._load_starts, []
        return started

    def take_seals(self) -> dict[str, str]:
        """Return, once, the seals that loads computed: digest -> seal."""
        return self._loader.take_seals()

    def stats(self, tier: Tier) -> CacheStats:
        """Return the statistics of `tier`."""
        return msgspec.structs.replace(self._cache.stats(tier), reloads=self._reloads[tier].count)

    def check(self) -> None:
        """Assert that memory holds what the cache says."""
        self._cache.check()
        assert self._residence.keys() == self._cache.held(Tier.DEVICE)
        assert self._packed.keys() == self._cache.held(Tier.HOST)
        assert self._mixes.keys() <= self._residence.keys() | self._packed.keys()

    def _let_go(self) -> None:
        for digest in list(self._leaving):
            if self._cache.drop(digest):
                self._leaving.remove(digest)
                self._packed.pop(digest, None)
                self._residence.pop(digest, None)
                self._forget_mix(digest)
                self._moved.add(digest)

    def _mixes_of(self, digest: str) -> list[str]:
        """Return the mixes, in memory or loading, that contain an adapter."""
        known = [*self._mixes.values(), *(flight.order.source for flight in self._flights.values())]
        return [mix.digest for mix in known if digest in (part.digest for part in mix.parts)]

    def _forget_mix(self, digest: str) -> None:
        if digest not in self._packed and digest not in self._residence:
            self._mixes.pop(digest, None)

    def _submit(self, order: LoadOrder) -> Future[Any]:
        source = order.source
        if order.tier is Tier.HOST:
            return self._executor.submit(self._loader.load, source)
        return self._executor.submit(
            self._loader.write, source, order.row, self._packed[source.digest]
        )

    def _tier_of(self, digest: str) -> Tier:
        if digest in self._residence:
            return Tier.DEVICE
        return Tier.HOST if digest in self._packed else Tier.STORED
