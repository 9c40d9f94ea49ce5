"""The adapters that requests can name: keeps catalog, package files and memory consistent.

Reads are served from memory; every change is written to disk first. A request takes a lease on the
version that it resolved, and the package file stays until the last lease is returned.

Leases are taken and returned on the event loop, without waiting for the disk. Methods that change
something may block.
"""

import datetime
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_adapters import Package
from loramux_server.store.aliases import Aliases
from loramux_server.store.blobs import Blobs, Staged
from loramux_server.store.files import Files
from loramux_server.store.leases import Leases
from loramux_server.store.lineage import Lineage
from loramux_server.store.names import Names
from loramux_server.store.quota import Quotas
from loramux_server.store.record import AdapterRecord, source_of
from loramux_server.store.reference import Reference, parse_name, parse_reference
from loramux_server.store.refusals import in_use, read_only, taken
from loramux_server.store.reserve import RESERVE_BYTES
from loramux_server.store.write_lock import ADDED, REMOVED, UPDATED, WriteLock
from loramux_server.wire.adapter_source import AdapterSource

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

_log = logging.getLogger(__name__)


class Registry:
    """Reference -> version, with its package file. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        quotas: Quotas | None = None,
        *,
        files: Files | None = None,
        catalog: "Callable[[Path], Catalog] | None" = None,
    ) -> None:
        """Open the registry in `folder` and clean up what a crash left.

        Args:
            folder: The folder of the package files; its parent has to exist.
            quotas: Storage quotas; by default unlimited.
            files: The system calls on the folder.
            catalog: Opens the catalog once the folder is locked; by default the one in it.

        Raises:
            StoreLockedError: Another server uses the folder.
            NewerFormatError: A newer version of the server wrote it.
        """
        # Imported here, because it imports SQLAlchemy: the rest of the store imports twice as fast.
        from loramux_server.store.catalog import Catalog

        with ExitStack() as opened:
            self.blobs = opened.enter_context(closing(Blobs(folder, files or Files())))
            self.catalog = opened.enter_context(closing((catalog or Catalog.in_folder)(folder)))
            self._names = Names()
            self._names.read(*self.catalog.contents())
            self.lineage = Lineage(self.catalog)
            self.blobs.recover(self._names.digests())
            self.blobs.reserve = self.catalog.reserve
            if self.blobs.reserve and not self.blobs.reserve.start():
                size = RESERVE_BYTES >> 20
                _log.warning(
                    "the store's disk has less than %d MiB free: no new adapters can be added", size
                )
            self._opened = opened.pop_all()
        self._lock = threading.Lock()
        """Held to read or change what is in memory; never during disk I/O."""
        self.quotas = quotas or Quotas()
        for record in self.records(all_versions=True):
            self.quotas.add(record)
        self._write_lock = WriteLock(self.catalog, self._names, self.quotas, self._lock)
        self.aliases = Aliases(self.catalog, self._names, self._write_lock, self._lock)
        self.leases = Leases(self._names, self.blobs, self._write_lock, self._lock)

    def __len__(self) -> int:
        return len(self._names)

    def get(self, reference: str, *, field: str = "name") -> AdapterRecord:
        """Return the version that `reference`, of the request field `field`, resolves to.

        For an alias with several versions, that is the heaviest.

        Raises:
            InvalidArgumentError: It is not a valid reference.
            NotFoundError: It resolves to nothing.
        """
        with self._lock:
            return self._names.find(parse_reference(reference, field), field=field)

    def has(self, adapter: Reference) -> bool:
        """Return whether an adapter has any version; tag and digest are ignored."""
        with self._lock:
            return self._names.newest((adapter.tenant, adapter.name)) is not None

    def versions(self, name: str, *, field: str = "name") -> list[AdapterRecord]:
        """Return all versions of an adapter, oldest first; none if it is not registered."""
        reference = parse_name(name, field)
        with self._lock:
            return self._names.versions((reference.tenant, reference.name))

    def follow(self, on_change: Callable[[str, AdapterRecord], object]) -> None:
        """Call `on_change`, in any thread, with each change: ADDED, UPDATED or REMOVED."""
        self._write_lock.on_change = on_change

    def names(self) -> list[str]:
        """Return the full names of all adapters, sorted by tenant and name."""
        return [record.full_name for record in self.records()]

    def records(
        self, *, begin: tuple[str, str] | None = None, all_versions: bool = False
    ) -> Iterator[AdapterRecord]:
        """Yield the newest version of each adapter, or all versions, newest first.

        Adapters are sorted by tenant and name, and begin at `begin`.
        """
        with self._lock:
            adapters = self._names.after(begin)
        for adapter in adapters:
            with self._lock:
                found = self._names.versions(adapter)
            yield from reversed(found if all_versions else found[-1:])

    def with_digest(self, digest: str) -> list[AdapterRecord]:
        """Return all versions with this content."""
        with self._lock:
            return self._names.with_digest(digest)

    @contextmanager
    def lease(
        self, reference: str, *, key: str | None = None, field: str = "adapter"
    ) -> Iterator[tuple[AdapterRecord, AdapterSource]]:
        """Resolve `reference` once and hold a lease on that version during the block.

        Args:
            reference: The reference of a request.
            key: Selects a version where an alias has several; None selects the heaviest.
            field: The request field that it came in.

        Raises:
            InvalidArgumentError: It is not a valid reference.
            NotFoundError: It resolves to nothing.
        """
        parsed = parse_reference(reference, field)
        with self.leases.use(parsed, field, key) as record:
            yield record, self.source_of(record)

    def source_of(self, record: AdapterRecord) -> AdapterSource:
        """Return what the engine needs to load `record`."""
        return source_of(record, self.blobs.path(record.digest))

    def stage(self) -> Staged:
        """Open a staging file for a package; `discard` it in the end."""
        return self.blobs.stage()

    def publish(self, name: str, staged: Staged, package: Package) -> AdapterRecord:
        """Store the file of a checked package, without a name, until `staged` is discarded.

        Until then the package can be tried out, and `register` gives it a name.
        """
        reference = parse_name(name, "name")
        if not staged.is_leased:
            self.leases.keep(staged.digest)
            staged.is_leased = True
        self.blobs.publish(staged)
        # Imported here, because numpy takes longer to import than the rest of the store.
        from loramux_server.store.check import record_of

        return record_of(reference, staged, package)

    def discard(self, staged: Staged) -> None:
        """Delete a staged file, and the file that it published unless that has a name."""
        self.blobs.discard(staged)
        if staged.is_leased:
            self.leases.let_go(staged.digest)

    def check_writable(self, name: str, field: str) -> None:
        """Refuse to change `name`, which came in the request field `field`, if it is read-only.

        Raises:
            FailedPreconditionError: The name belongs to the directory.
        """
        reference = parse_name(name, field)
        with self._lock:
            newest = self._names.newest((reference.tenant, reference.name))
        if newest and newest.is_provided:
            raise read_only(name, field)

    def register(
        self, record: AdapterRecord, *, must_not_exist: bool = False, if_absent: bool = False
    ) -> tuple[AdapterRecord, bool]:
        """Give a published file a name and the next number; durable and visible on return.

        Args:
            record: The version, without its number.
            must_not_exist: Whether to refuse a name that has other content.
            if_absent: Whether to do nothing if the name exists.

        Returns:
            The newest version of the name, and whether it is new: content that already is the
            newest version gets no second number.

        Raises:
            AlreadyExistsError: The name has other content and `must_not_exist` is set.
            FailedPreconditionError: The name belongs to the directory, and this is not from there.
        """
        with self._write_lock:
            old = self._names.newest(record.adapter)
            if old and if_absent:
                return old, False
            if not record.is_provided:
                self.check_writable(record.full_name, "header.name")
            if old and old.digest == record.digest and old.is_provided == record.is_provided:
                same = replace(
                    old, stamp=record.stamp, seal=record.seal, expires_at=record.expires_at
                )
                return (old if same == old else self._update(same)), False
            if old and must_not_exist:
                raise taken(old)
            record = replace(record, version=self._names.next_version(record.adapter))
            replaced = self._outdated(record)
            self.catalog.add(record, replaced)
            with self._lock:
                self._names.add(record)
                self.quotas.add(record)
                for version in replaced:
                    self._names.remove(version)
            self._write_lock.on_change(ADDED, record)
            self._removed(replaced)
            return record, True

    def change(
        self, reference: str, change: Callable[[AdapterRecord], AdapterRecord]
    ) -> AdapterRecord:
        """Change the mutable fields of a version, its pin or expiry time, and return it.

        Raises:
            NotFoundError: The reference resolves to nothing.
        """
        with self._write_lock:
            record = self.get(reference)
            changed = change(record)
            return record if changed == record else self._update(changed)

    def keep_seals(self, seals: Mapping[str, str]) -> None:
        """Store seals computed from files: digest -> seal. `on_change` is not called."""
        with self._write_lock:
            with self._lock:
                found = [
                    replace(record, seal=seal)
                    for digest, seal in seals.items()
                    for record in self._names.with_digest(digest)
                    if record.seal != seal
                ]
            if not found:
                return
            self.catalog.keep_seals({record.digest: record.seal for record in found})
            with self._lock:
                for record in found:
                    self._names.add(record)

    def delete(self, reference: str) -> list[AdapterRecord]:
        """Delete one version, or the whole adapter if none is given, and return the records.

        Names disappear at once, files when nothing uses them any more.

        Raises:
            NotFoundError: The reference resolves to nothing.
            FailedPreconditionError: The name belongs to the directory, or an alias includes the
                version.
        """
        with self._write_lock:
            record = self.get(reference)
            self.check_writable(record.full_name, "name")
            if parse_reference(reference, "name").is_bare:
                return self._forget(self._names.versions(record.adapter))
            if aliases := self.aliases.of_version(record):
                raise in_use(record, aliases[0])
            return self._forget([record])

    def expire(self, now: datetime.datetime) -> list[AdapterRecord]:
        """Delete versions that have expired at `now`, as `delete` does, and return the records.

        A version that an alias includes stays until the alias moves.
        """
        with self._write_lock:
            with self._lock:
                due = list(self._names.expired(now))
            gone = [record for record in due if not self.aliases.of_version(record)]
            return self._forget(gone) if gone else []

    def mirror(self, record: AdapterRecord) -> None:
        """Give a published file the name and the number that it has on a primary.

        Other content with that number is deleted.
        """
        with self._write_lock:
            if other := self._names.version(record.adapter, record.version):
                self._forget([other])
            self.catalog.add(record)
            with self._lock:
                self._names.add(record)
                self.quotas.add(record)
            self._write_lock.on_change(ADDED, record)

    def forget(self, records: list[AdapterRecord]) -> None:
        """Delete those of `records` that are still registered, as the primary did."""
        with self._write_lock:
            self._forget(
                [r for r in records if self._names.version(r.adapter, r.version) is not None]
            )

    def forget_directory(self, name: str) -> list[AdapterRecord]:
        """Delete an adapter whose files are gone from the directory, and return the records."""
        with self._write_lock:
            return self._forget(self._names.versions(self.get(name).adapter))

    def close(self) -> None:
        """Close the database and unlock the folder."""
        self.leases.close()
        self._opened.close()

    def _outdated(self, record: AdapterRecord) -> list[AdapterRecord]:
        """Return the versions that `record` replaces: of files that are no longer there.

        Empty if it is not from the directory. Versions that an alias includes stay.
        """
        if not record.is_provided:
            return []
        old = self._names.versions(record.adapter)
        return [version for version in old if not self.aliases.of_version(version)]

    def _update(self, record: AdapterRecord) -> AdapterRecord:
        """Store a changed record. The caller holds `_write_lock`."""
        self.catalog.update(record)
        with self._lock:
            self._names.add(record)
        self._write_lock.on_change(UPDATED, record)
        return record

    def _forget(self, records: list[AdapterRecord]) -> list[AdapterRecord]:
        """Delete versions. The caller holds `_write_lock`."""
        self.catalog.remove(records)
        with self._lock:
            for record in records:
                self._names.remove(record)
        self._removed(records)
        return records

    def _removed(self, records: list[AdapterRecord]) -> None:
        for record in records:
            self.quotas.remove(record)
            self._write_lock.on_change(REMOVED, record)
            self.leases.clear(record.digest)
