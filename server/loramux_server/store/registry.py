"""The adapters that requests can name: the catalog and the blobs, kept in step.

Reads come from memory; every change goes to disk first. A request takes a lease on the version that
it resolved, and the bytes of that version stay until the last lease is given back.

Leases are taken and given back on the event loop: they wait for no disk. What changes something may
block.
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
from loramux_server.store.writing import ADDED, REMOVED, UPDATED, Writing
from loramux_server.wire.adapter_source import AdapterSource

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

_log = logging.getLogger(__name__)


class Registry:
    """Reference -> version, with the bytes behind it. Threads may share it."""

    def __init__(
        self,
        folder: Path,
        quotas: Quotas | None = None,
        *,
        files: Files | None = None,
        catalog: "Callable[[Path], Catalog] | None" = None,
    ) -> None:
        """Open the registry in `folder` and clear away what a crash left behind.

        Args:
            folder: Where the bytes are; the folder above it has to be there.
            quotas: Counts what is stored; by default it has no limits.
            files: What is done to the folder.
            catalog: Opens the catalog, by default that in the folder, once the folder is ours.

        Raises:
            StoreLockedError: Another server uses the folder.
            NewerFormatError: A newer version of the server wrote it.
        """
        # Imported here, and so is SQLAlchemy: the rest of the store is loaded in half of the time.
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
                _log.warning("the store's disk has less than %d MiB: no new adapters fit", size)
            self._opened = opened.pop_all()
        self._lock = threading.Lock()
        """Held to look at or change what is in memory; never while the disk works."""
        self.quotas = quotas or Quotas()
        for record in self.records(all_versions=True):
            self.quotas.add(record)
        self._writing = Writing(self.catalog, self._names, self.quotas, self._lock)
        self.aliases = Aliases(self.catalog, self._names, self._writing, self._lock)
        self.leases = Leases(self._names, self.blobs, self._writing, self._lock)

    def __len__(self) -> int:
        return len(self._names)

    def get(self, reference: str, *, field: str = "name") -> AdapterRecord:
        """Return the version that `reference`, of the request field `field`, stands for.

        Of several, it is the heaviest.

        Raises:
            InvalidArgumentError: It is no reference.
            NotFoundError: It stands for nothing.
        """
        with self._lock:
            return self._names.find(parse_reference(reference, field), field=field)

    def has(self, adapter: Reference) -> bool:
        """Return whether an adapter has a version, whichever `adapter` means."""
        with self._lock:
            return self._names.newest((adapter.tenant, adapter.name)) is not None

    def versions(self, name: str, *, field: str = "name") -> list[AdapterRecord]:
        """Return all versions of an adapter, oldest first; none if it is not registered."""
        reference = parse_name(name, field)
        with self._lock:
            return self._names.versions((reference.tenant, reference.name))

    def follow(self, on_change: Callable[[str, AdapterRecord], object]) -> None:
        """Call `on_change`, in any thread, with what happens: ADDED, UPDATED or REMOVED."""
        self._writing.on_change = on_change

    def names(self) -> list[str]:
        """Return the references to all adapters in the order of tenants and names."""
        return [record.full_name for record in self.records()]

    def records(
        self, *, begin: tuple[str, str] | None = None, all_versions: bool = False
    ) -> Iterator[AdapterRecord]:
        """Yield adapters in the order of tenants and names, from `begin` on.

        Each with its newest version, or with all of them, newest first.
        """
        with self._lock:
            adapters = self._names.after(begin)
        for adapter in adapters:
            with self._lock:
                found = self._names.versions(adapter)
            yield from reversed(found if all_versions else found[-1:])

    def with_digest(self, digest: str) -> list[AdapterRecord]:
        """Return all versions that have this content."""
        with self._lock:
            return self._names.with_digest(digest)

    @contextmanager
    def lease(
        self, reference: str, *, key: str | None = None, field: str = "adapter"
    ) -> Iterator[tuple[AdapterRecord, AdapterSource]]:
        """Resolve `reference` once and keep that version's bytes for as long as the block runs.

        Args:
            reference: What a request asks for.
            key: Chooses where an alias stands for several versions; None means the heaviest.
            field: The request field that it came in.

        Raises:
            InvalidArgumentError: It is no reference.
            NotFoundError: It stands for nothing.
        """
        parsed = parse_reference(reference, field)
        with self.leases.use(parsed, field, key) as record:
            yield record, self.source_of(record)

    def source_of(self, record: AdapterRecord) -> AdapterSource:
        """Return what the engine needs to load `record`."""
        return source_of(record, self.blobs.path(record.digest))

    def stage(self) -> Staged:
        """Open a file for a package that is on its way; `discard` it in the end."""
        return self.blobs.stage()

    def publish(self, name: str, staged: Staged, package: Package) -> AdapterRecord:
        """Store the bytes of a checked package, not yet its name, until `staged` is discarded.

        Until then the package may be tried out, and then `register` keeps it.
        """
        reference = parse_name(name, "name")
        if not staged.is_leased:
            self.leases.keep(staged.digest)
            staged.is_leased = True
        self.blobs.publish(staged)
        # numpy, which it needs, takes longer to load than all else of the store.
        from loramux_server.store.check import record_of

        return record_of(reference, staged, package)

    def discard(self, staged: Staged) -> None:
        """Delete what was staged, and also the bytes that it published if they have no name."""
        self.blobs.discard(staged)
        if staged.is_leased:
            self.leases.let_go(staged.digest)

    def check_writable(self, name: str, field: str) -> None:
        """Refuse to change `name`, which came in the request field `field`, if it is read-only.

        Raises:
            FailedPreconditionError: The name belongs to the directory.
        """
        reference = parse_name(name, field)
        newest = self._names.newest((reference.tenant, reference.name))
        if newest and newest.is_provided:
            raise read_only(name, field)

    def register(
        self, record: AdapterRecord, *, must_not_exist: bool = False, if_absent: bool = False
    ) -> tuple[AdapterRecord, bool]:
        """Give published bytes a name and the next number; durable and visible on return.

        Args:
            record: The version; its number is not known yet.
            must_not_exist: Whether to refuse a name that has other content.
            if_absent: Whether to leave a name alone that has any.

        Returns:
            The newest version of the name, and whether it is new: content that is the newest
            already gets no second number.

        Raises:
            AlreadyExistsError: The name has other content and `must_not_exist` is set.
            FailedPreconditionError: The name belongs to the directory, and this is not from there.
        """
        with self._writing:
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
            self._writing.on_change(ADDED, record)
            self._went(replaced)
            return record, True

    def change(
        self, reference: str, change: Callable[[AdapterRecord], AdapterRecord]
    ) -> AdapterRecord:
        """Change what may be of a version, its pin or when it expires, and return it.

        Raises:
            NotFoundError: The reference stands for nothing.
        """
        with self._writing:
            record = self.get(reference)
            changed = change(record)
            return record if changed == record else self._update(changed)

    def keep_seals(self, seals: Mapping[str, str]) -> None:
        """Keep what was found out of files: digest -> seal. Nobody who watches is told."""
        with self._writing:
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
        """Forget one version, or the whole adapter if none is named, and return what went.

        At once; the bytes go when nobody uses them any more.

        Raises:
            NotFoundError: The reference stands for nothing.
            FailedPreconditionError: The name belongs to the directory, or an alias stands for the
                version.
        """
        with self._writing:
            record = self.get(reference)
            self.check_writable(record.full_name, "name")
            if parse_reference(reference, "name").is_bare:
                return self._forget(self._names.versions(record.adapter))
            if aliases := self.aliases.of_version(record):
                raise in_use(record, aliases[0])
            return self._forget([record])

    def expire(self, now: datetime.datetime) -> list[AdapterRecord]:
        """Forget versions whose time is over at `now`, as `delete` does, and return what went.

        One that an alias stands for stays until the alias moves on.
        """
        with self._writing:
            with self._lock:
                due = list(self._names.expired(now))
            gone = [record for record in due if not self.aliases.of_version(record)]
            return self._forget(gone) if gone else []

    def mirror(self, record: AdapterRecord) -> None:
        """Give published bytes the name and the very number that they have on a primary.

        Other content that has the number here goes.
        """
        with self._writing:
            if other := self._names.version(record.adapter, record.version):
                self._forget([other])
            self.catalog.add(record)
            with self._lock:
                self._names.add(record)
                self.quotas.add(record)
            self._writing.on_change(ADDED, record)

    def forget(self, records: list[AdapterRecord]) -> None:
        """Forget those of `records` that are still registered, as a primary did."""
        with self._writing:
            self._forget(
                [r for r in records if self._names.version(r.adapter, r.version) is not None]
            )

    def forget_directory(self, name: str) -> list[AdapterRecord]:
        """Forget an adapter whose files have left the directory, and return what went."""
        with self._writing:
            return self._forget(self._names.versions(self.get(name).adapter))

    def close(self) -> None:
        """Close the database and let another server use the folder."""
        self.leases.close()
        self._opened.close()

    def _outdated(self, record: AdapterRecord) -> list[AdapterRecord]:
        """Return the versions that go when `record` comes: of files that are there no more."""
        if not record.is_provided:
            return []
        old = self._names.versions(record.adapter)
        return [version for version in old if not self.aliases.of_version(version)]

    def _update(self, record: AdapterRecord) -> AdapterRecord:
        """Keep what changed of a version; only who is writing may call this."""
        self.catalog.update(record)
        with self._lock:
            self._names.add(record)
        self._writing.on_change(UPDATED, record)
        return record

    def _forget(self, records: list[AdapterRecord]) -> list[AdapterRecord]:
        """Forget versions; only who is writing may call this."""
        self.catalog.remove(records)
        with self._lock:
            for record in records:
                self._names.remove(record)
        self._went(records)
        return records

    def _went(self, records: list[AdapterRecord]) -> None:
        for record in records:
            self.quotas.remove(record)
            self._writing.on_change(REMOVED, record)
            self.leases.clear(record.digest)
