"""Changes of adapters, for watchers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from loramux.errors import ResourceExhaustedError, UnavailableError
from loramux.v1 import adapters_pb2
from loramux_server.access.caller import Caller, acting, caller
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.store.record import AdapterRecord

MAX_QUEUED = 4096
"""Maximum changes queued for a watcher."""

Change = adapters_pb2.WatchAdaptersResponse


class Watcher:
    """The queue of changes for one caller."""

    def __init__(self, wants: Callable[[AdapterRecord], bool], who: Caller) -> None:
        self.wants = wants
        self.who = who
        self._left: deque[Change] = deque()
        self._is_behind = False
        self._is_closed = False
        self._wake = asyncio.Event()

    def put(self, change: Change) -> None:
        """Queue a change."""
        if len(self._left) < MAX_QUEUED:
            self._left.append(change)
        else:
            self._is_behind = True
        self._wake.set()

    def close(self) -> None:
        """End the stream after what is queued."""
        self._is_closed = True
        self._wake.set()

    async def changes(self) -> AsyncIterator[Change]:
        """Yield changes as they come.

        Raises:
            ResourceExhaustedError: They came faster than they were taken.
            UnavailableError: The server is shutting down.
        """
        while True:
            while self._left:
                yield self._left.popleft()
            if self._is_behind:
                raise ResourceExhaustedError(
                    f"the watcher is more than {MAX_QUEUED} changes behind; watch again",
                    reason="WATCH_TOO_SLOW",
                )
            if self._is_closed:
                raise UnavailableError(
                    "the server is shutting down; watch again", reason="ENGINE_UNAVAILABLE",
                    retry_delay=1.0,
                )  # fmt: skip
            self._wake.clear()
            await self._wake.wait()


class Changes:
    """Distributes changes to watchers. Runs on the event loop."""

    def __init__(self, descriptions: Descriptions) -> None:
        self._descriptions = descriptions
        self._watchers: set[Watcher] = set()
        self._is_closed = False

    def notify(
        self, kind: adapters_pb2.AdapterChange.ValueType, records: Iterable[AdapterRecord]
    ) -> None:
        """Queue a change of `records` for those who watch them."""
        if not self._watchers:
            return
        for record in records:
            changes: dict[str, Change] = {}
            for watcher in self._watchers:
                if watcher.wants(record):
                    # A description depends on the caller's tenant, e.g. how it refers to the
                    # adapter.
                    if (tenant := watcher.who.tenant) not in changes:
                        with acting(watcher.who):
                            described = self._descriptions.of(record)
                        changes[tenant] = Change(change=kind, adapter=described)
                    watcher.put(changes[tenant])

    def watch(self, wants: Callable[[AdapterRecord], bool]) -> Watcher:
        """Return a new watcher of versions for which `wants` is true; call `leave` in the end."""
        watcher = Watcher(wants, caller())
        if self._is_closed:
            watcher.close()
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Stop queueing changes for a watcher."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """End all watches at shutdown."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.close()
