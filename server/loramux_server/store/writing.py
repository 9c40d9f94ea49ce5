"""The right to change the registry: one at a time, on top of what is on disk."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loramux_server.store.names import Names
from loramux_server.store.quota import Quotas
from loramux_server.store.record import AdapterRecord

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

ADDED, UPDATED, REMOVED = "added", "updated", "removed"


class Writing:
    """Held, in a `with`, to change names on disk and in memory alike.

    A write that failed may have come through all the same: a disk or a connection can lose the
    answer alone. So after one the catalog is read again before anything else changes.
    """

    def __init__(
        self, catalog: "Catalog", names: Names, quotas: Quotas, lock: threading.Lock
    ) -> None:
        """Work on what the registry owns.

        Args:
            catalog: Where changes go first.
            names: The same in memory.
            quotas: Counts what has a name.
            lock: Held to look at `names` or change it.
        """
        self.mutex = threading.Lock()
        """Held alone while unused bytes go, for which no catalog is needed."""
        self._catalog = catalog
        self._names = names
        self._quotas = quotas
        self._lock = lock
        self.on_change: Callable[[str, AdapterRecord], object] = lambda what, record: None
        """Called, in any thread, with what happened to a version: ADDED, UPDATED or REMOVED."""
        self.on_sure: Callable[[set[str]], object] = lambda digests: None
        """Called when memory is what is on disk again, with the content of what went."""

    @property
    def is_unsure(self) -> bool:
        """Whether the catalog may have what memory has not."""
        return self._catalog.is_unsure

    def __enter__(self) -> None:
        """Wait for the others; raises what the database does if it has to be read and cannot be."""
        self.mutex.acquire()
        try:
            if self.is_unsure:
                self._read_again()
        except BaseException:
            self.mutex.release()
            raise

    def __exit__(self, *_: object) -> None:
        self.mutex.release()

    def _read_again(self) -> None:
        found = self._catalog.contents()
        self._catalog.is_unsure = False
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
        self.on_sure({record.digest for record in gone})
