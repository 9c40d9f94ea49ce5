"""Leases on versions, and deleting package files that have neither a name nor a lease.

Requests take and return leases on the event loop, without waiting for the disk.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from loramux_server.store.blobs import Blobs
from loramux_server.store.names import Key, Names
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import Reference
from loramux_server.store.write_lock import WriteLock

K = TypeVar("K", str, Key)


class Leases:
    """Counts the users of each package file, and the requests of each version. Thread-safe."""

    def __init__(
        self, names: Names, blobs: Blobs, write_lock: WriteLock, lock: threading.Lock
    ) -> None:
        """Work on what the registry owns.

        Args:
            names: Names keep package files as well.
            blobs: The package files.
            write_lock: Held while names change on disk, and while unused files are deleted.
            lock: Held to read or change `names` or leases.
        """
        self._names = names
        self._blobs = blobs
        self._write_lock = write_lock
        self._lock = lock
        self._bytes: Counter[str] = Counter()
        """Digest -> number of requests and uploads that use it."""
        self._requests: Counter[Key] = Counter()
        """Version -> number of running requests that resolved to it."""
        self._when_idle: dict[Key, list[Callable[[], object]]] = {}
        self._doubtful: set[str] = set()
        """Unused digests that may have a name in the catalog that is missing in memory."""
        write_lock.on_reloaded = self._clear_doubtful
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="sweep")
        """Deletes the files whose last user was a request."""
        self.on_gone: Callable[[str], None] = lambda digest: None
        """Called with each digest that is no longer named or in use."""

    @contextmanager
    def use(self, reference: Reference, field: str, key: str | None) -> Iterator[AdapterRecord]:
        """Resolve `reference` once and hold a lease on that version during the block.

        Raises:
            NotFoundError: It resolves to nothing.
        """
        with self._lock:
            record = self._names.find(reference, field=field, key=key)
            self._bytes[record.digest] += 1
            self._requests[record.key] += 1
        try:
            yield record
        finally:
            with self._lock:
                _take(self._bytes, record.digest)
                _take(self._requests, record.key)
                is_idle = record.key not in self._requests
                waiting = self._when_idle.pop(record.key, []) if is_idle else []
                is_used = self._is_used(record.digest)
            if is_used:
                _call(waiting)
            else:
                # After `close`, the next start deletes the file.
                with suppress(RuntimeError):
                    self._sweeper.submit(self._sweep, record.digest, waiting)

    def keep(self, digest: str) -> None:
        """Take a lease on content that is about to be published, until `let_go`."""
        with self._write_lock.mutex, self._lock:
            self._bytes[digest] += 1

    def let_go(self, digest: str) -> None:
        """Undo one `keep`; the file is deleted if nothing else uses it."""
        with self._write_lock.mutex:
            with self._lock:
                _take(self._bytes, digest)
            self.clear(digest)

    def clear(self, digest: str) -> None:
        """Delete a package file unless it is named or in use. The caller holds the write mutex."""
        if self._write_lock.needs_reload:
            self._doubtful.add(digest)
            return
        with self._lock:
            if self._is_used(digest):
                return
        self._blobs.remove(digest)
        self.on_gone(digest)

    def __len__(self) -> int:
        """Return the number of leases of requests and uploads."""
        with self._lock:
            return self._bytes.total()

    def num_requests(self, record: AdapterRecord) -> int:
        """Return the number of requests that use a version now."""
        return self._requests.get(record.key, 0)

    def when_idle(self, record: AdapterRecord, callback: Callable[[], object]) -> None:
        """Call `callback`, in any thread, once no request uses a version.

        By then its file has been deleted, unless others need it.
        """
        with self._lock:
            if record.key in self._requests:
                self._when_idle.setdefault(record.key, []).append(callback)
                return
        callback()

    def close(self) -> None:
        """Finish pending deletions."""
        self._sweeper.shutdown()

    def _sweep(self, digest: str, waiting: list[Callable[[], object]]) -> None:
        with self._write_lock.mutex:
            self.clear(digest)
        _call(waiting)

    def _clear_doubtful(self, gone: set[str]) -> None:
        doubtful, self._doubtful = self._doubtful | gone, set()
        for digest in doubtful:
            self.clear(digest)

    def _is_used(self, digest: str) -> bool:
        return self._names.has_digest(digest) or digest in self._bytes


def _call(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()


def _take(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
