"""The write lock of the registry, which keeps memory in sync with the catalog."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loramux_server.store.names import Names
from loramux_server.store.quota import Quotas
from loramux_server.store.record import AdapterRecord

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

ADDED, UPDATED, REMOVED = "added", "updated", "removed"


class WriteLock:
    """A context manager to hold while changing names on disk and in memory.

    A failed write may still have been committed: a disk or a connection can lose just the answer.
    So after one, the catalog is read again before the next change.
    """

    def __init__(
        self, catalog: "Catalog", names: Names, quotas: Quotas, lock: threading.Lock
    ) -> None:
        """Work on what the registry owns.

        Args:
            catalog: Where changes are written first.
            names: The same in memory.
            quotas: Count the named versions.
            lock: Held to read or change `names`.
        """
        self.mutex = threading.Lock()
        """Enough for deleting unused files, which needs no catalog."""
        self._catalog = catalog
        self._names = names
        self._quotas = quotas
        self._lock = lock
        self.on_change: Callable[[str, AdapterRecord], object] = lambda what, record: None
        """Called, in any thread, with each change of a version: ADDED, UPDATED or REMOVED."""
        self.on_reloaded: Callable[[set[str]], object] = lambda digests: None
        """Called when memory matches the catalog again, with the digests of removed versions."""

    @property
    def needs_reload(self) -> bool:
        """Whether the catalog may differ from memory."""
        return self._catalog.needs_reload

    def __enter__(self) -> None:
        """Wait for the lock; if the catalog has to be read again and cannot be, raise its error."""
        self.mutex.acquire()
        try:
            if self.needs_reload:
                self._reload()
        except BaseException:
            self.mutex.release()
            raise

    def __exit__(self, *_: object) -> None:
        self.mutex.release()

    def _reload(self) -> None:
        found = self._catalog.contents()
        self._catalog.needs_reload = False
        with self._lock:
            before = self._names.by_key()
            self._names.read(*found)
            after = self._names.by_key()
        gone = [record for key, record in before.items() if key not in after]
        for record in gone:
            self._quotas.remove(record)
            self.on_change(REMOVED, record)
        for key, record in after.items():
            if key not in before:
                self._quotas.add(record)
            if before.get(key) != record:
                self.on_change(UPDATED if key in before else ADDED, record)
        self.on_reloaded({record.digest for record in gone})
