"""The adapters that requests can name: the catalog and the blobs, kept in step.

Reads come from memory; every change goes to disk first. A request takes a lease on the version that
it resolved, and the bytes of that version stay until the last lease is given back.

Leases are taken and given back on the event loop: they wait for no disk. All else may block.
"""

import datetime
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from loramux.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
)
from loramux_adapters import Package
from loramux_server.engine.messages import AdapterSource
from loramux_server.lora.packed import format_of
from loramux_server.store.blobs import Blobs, Staged
from loramux_server.store.catalog import DIRECTORY, UPLOAD, AdapterRecord, Catalog
from loramux_server.store.check import num_bytes

_log = logging.getLogger(__name__)


class Registry:
    """Name -> adapter, with the bytes behind it. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Open the registry in `folder` and clear away what a crash left behind.

        Raises:
            StoreLockedError: Another server uses the folder.
        """
        self._blobs = Blobs(folder)
        self.catalog = Catalog.in_folder(folder)
        self._adapters = {record.name: record for record in self.catalog.all()}
        self._names = Counter(record.digest for record in self._adapters.values())
        """Digest -> how many names stand for it."""
        self._leases: Counter[str] = Counter()
        """Digest -> how many requests and uploads use it."""
        self._lock = threading.Lock()
        """Held to look at or change what is above; never while the disk works."""
        self._writing = threading.Lock()
        """Held to change names on disk and in memory alike, and while unused bytes go."""
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="sweep")
        """Deletes the bytes that a request was the last to use."""
        self.on_gone: Callable[[str], None] = lambda digest: None
        """Called with the digest of a version that is neither named nor in use any more."""
        self._blobs.recover(self._names)

    def __len__(self) -> int:
        return len(self._adapters)

    def get(self, name: str, *, field: str = "name") -> AdapterRecord:
        """Return the adapter called `name`, which came in the request field `field`.

        Raises:
            NotFoundError: There is none.
        """
        try:
            return self._adapters[name]
        except KeyError:
            raise NotFoundError(
                f"adapter {name!r} is not registered", reason="ADAPTER_NOT_FOUND", field=field
            ) from None

    def names(self) -> list[str]:
        """Return all names in order."""
        return sorted(self._adapters)

    def records(self) -> list[AdapterRecord]:
        """Return all adapters in the order of their names."""
        return sorted(self._adapters.values(), key=lambda record: record.name)

    @contextmanager
    def lease(self, name: str) -> Iterator[tuple[AdapterRecord, AdapterSource]]:
        """Resolve `name` once and keep that version's bytes for as long as the block runs.

        Raises:
            NotFoundError: There is no such adapter.
        """
        with self._lock:
            record = self.get(name, field="adapter")
            self._leases[record.digest] += 1
        try:
            yield record, self.source_of(record)
        finally:
            with self._lock:
                _take(self._leases, record.digest)
                is_used = self._is_used(record.digest)
            if not is_used:
                # After `close` it is left to the next start.
                with suppress(RuntimeError):
                    self._sweeper.submit(self._sweep, record.digest)

    def source_of(self, record: AdapterRecord) -> AdapterSource:
        """Return what the engine needs to load `record`."""
        return AdapterSource(
            record.digest,
            str(self._blobs.path(record.digest)),
            record.rank,
            record.num_bytes,
            record.item_bytes,
        )

    def stage(self) -> Staged:
        """Open a file for a package that is on its way; `discard` it in the end."""
        return self._blobs.stage()

    def publish(self, name: str, staged: Staged, package: Package) -> AdapterRecord:
        """Store the bytes of a checked package, not yet its name, until `staged` is discarded.

        Until then the package may be tried out, and then `register` keeps it.
        """
        with self._writing, self._lock:
            self._leases[staged.digest] += 1
            staged.is_leased = True
        self._blobs.publish(staged)
        return AdapterRecord(
            name=name,
            digest=staged.digest,
            size_bytes=staged.size,
            rank=package.rank,
            num_bytes=num_bytes(package),
            item_bytes=format_of(package).item_bytes,
            target_modules=tuple(package.target_modules),
            base_model=package.config.base_model,
            source=UPLOAD,
            created_at=datetime.datetime.now(datetime.UTC),
        )

    def discard(self, staged: Staged) -> None:
        """Delete what was staged, and also the bytes that it published if they have no name."""
        self._blobs.discard(staged)
        if staged.is_leased:
            with self._writing:
                with self._lock:
                    _take(self._leases, staged.digest)
                self._clear(staged.digest)

    def check_writable(self, name: str, field: str) -> None:
        """Refuse to change `name`, which came in the request field `field`, if it is read-only.

        Raises:
            FailedPreconditionError: The name belongs to the directory.
        """
        record = self._adapters.get(name)
        if record and record.source == DIRECTORY:
            raise FailedPreconditionError(
                f"adapter {name!r} comes from the --adapters directory; change it there",
                reason="ADAPTER_READ_ONLY",
                field=field,
            )

    def register(self, record: AdapterRecord, *, must_not_exist: bool = False) -> AdapterRecord:
        """Give published bytes their name; durable and visible when this returns.

        Returns:
            What the name stands for: `record`, or an older one with this very content.

        Raises:
            AlreadyExistsError: The name has other content and `must_not_exist` is set.
            FailedPreconditionError: The name belongs to the directory, and this is an upload.
        """
        with self._writing:
            old = self._adapters.get(record.name)
            if record.source == UPLOAD:
                self.check_writable(record.name, "header.name")
            if old and old.digest == record.digest and old.stamp == record.stamp:
                return old
            if old and must_not_exist:
                raise AlreadyExistsError(
                    f"adapter {record.name!r} exists with other content, {old.digest}",
                    reason="ADAPTER_EXISTS",
                    field="header.name",
                )
            self.catalog.put(record)
            with self._lock:
                self._adapters[record.name] = record
                self._names[record.digest] += 1
                if old:
                    _take(self._names, old.digest)
            if old:
                self._clear(old.digest)
            return record

    def delete(self, name: str) -> None:
        """Forget `name` at once; its bytes go when nobody uses them any more.

        Raises:
            NotFoundError: There is no such adapter.
            FailedPreconditionError: The name belongs to the directory.
        """
        with self._writing:
            record = self.get(name)
            self.check_writable(name, "name")
            self._forget(record)

    def from_directory(self) -> dict[str, AdapterRecord]:
        """Return the adapters that came from the directory, by name."""
        return {r.name: r for r in self._adapters.values() if r.source == DIRECTORY}

    def forget_directory(self, name: str) -> None:
        """Forget an adapter whose files have left the directory."""
        with self._writing:
            self._forget(self._adapters[name])

    def close(self) -> None:
        """Close the database and let another server use the folder."""
        self._sweeper.shutdown()
        self.catalog.close()
        self._blobs.close()

    def _forget(self, record: AdapterRecord) -> None:
        self.catalog.remove(record.name)
        with self._lock:
            del self._adapters[record.name]
            _take(self._names, record.digest)
        self._clear(record.digest)

    def _sweep(self, digest: str) -> None:
        try:
            with self._writing:
                self._clear(digest)
        except OSError as error:
            _log.warning("%s is left for the next start to delete: %s", digest, error)

    def _clear(self, digest: str) -> None:
        """Delete the bytes of a version that is not used; only who is writing may call this."""
        with self._lock:
            if self._is_used(digest):
                return
        self._blobs.remove(digest)
        self.on_gone(digest)

    def _is_used(self, digest: str) -> bool:
        return digest in self._names or digest in self._leases


def _take(counter: Counter[str], digest: str) -> None:
    counter[digest] -= 1
    if not counter[digest]:
        del counter[digest]


def directory_record(record: AdapterRecord, stamp: str) -> AdapterRecord:
    """Return `record` as it is kept for files of the directory in the state `stamp`."""
    return replace(record, source=DIRECTORY, stamp=stamp)
