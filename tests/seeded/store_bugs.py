"""Mistakes that a store could have, each a small patch."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from loramux.errors import NotFoundError
from loramux_server.hashes import Seal
from loramux_server.services.generation import service as generation
from loramux_server.services.resolved_adapters import resolve_adapters
from loramux_server.store.blobs import Blobs, Staged
from loramux_server.store.catalog import Catalog
from loramux_server.store.files import Files
from loramux_server.store.leases import Leases
from loramux_server.store.names import Names
from loramux_server.store.quota import Quotas, Reservation
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import Reference
from loramux_server.store.registry import Registry
from tests.crash.seen import SeenCatalog, SeenFiles

Patch = pytest.MonkeyPatch


def skip_file_sync(patch: Patch) -> None:
    patch.setattr(SeenFiles, "sync", lambda self, file: file.flush())


def skip_folder_sync(patch: Patch) -> None:
    patch.setattr(SeenFiles, "sync_folder", lambda self, path: None)


def sync_the_folder_of_blobs_once(patch: Patch) -> None:
    """As if a folder that is there were durable: it may be left by a server that was killed."""
    publish = Blobs.publish

    def publish_(self: Blobs, staged: Staged) -> Path:
        target = self.path(staged.digest)
        if target.parent.exists():
            self._durable.add(target.parent)
        return publish(self, staged)

    patch.setattr(Blobs, "publish", publish_)


def rename_before_sync(patch: Patch) -> None:
    publish = Blobs.publish
    sync = SeenFiles.sync
    late: list[BinaryIO] = []

    def publish_(self: Blobs, staged: Staged) -> Path:
        target = publish(self, staged)
        sync(self._files, late.pop())  # type: ignore[arg-type]
        return target

    patch.setattr(SeenFiles, "sync", lambda self, file: late.append(file))
    patch.setattr(Blobs, "publish", publish_)


def acknowledge_before_commit(patch: Patch) -> None:
    late: list[Any] = []

    def commit(self: SeenCatalog, change: Any, *arguments: Any) -> None:
        while late:
            real(self, *late.pop(0))
        late.append((change, *arguments))

    real = SeenCatalog._commit
    patch.setattr(SeenCatalog, "_commit", commit)


def commit_before_rename(patch: Patch) -> None:
    staged_of: dict[str, Staged] = {}
    publish, register = Blobs.publish, Registry.register

    def publish_(self: Blobs, staged: Staged) -> Path:
        staged_of[staged.digest] = staged
        return self.path(staged.digest)

    def register_(self: Registry, record: AdapterRecord, **more: bool) -> Any:
        result = register(self, record, **more)
        if record.digest in staged_of:
            publish(self.blobs, staged_of.pop(record.digest))
        return result

    patch.setattr(Blobs, "publish", publish_)
    patch.setattr(Registry, "register", register_)


def seal_what_came_last(patch: Patch) -> None:
    """As if what an earlier server wrote of a file were no part of it."""

    catch_up = Staged.catch_up

    def catch_up_(self: Staged) -> None:
        catch_up(self)
        self._seal = Seal()

    patch.setattr(Staged, "catch_up", catch_up_)


def commit_without_sync(patch: Patch) -> None:
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    patch.setattr("loramux_server.store.catalog._configure_sqlite", configure)


def reuse_a_staging_name(patch: Patch) -> None:
    create = Files.create

    def create_(self: Files, path: Path, *, must_not_exist: bool) -> BinaryIO:
        return create(self, path, must_not_exist=False)

    patch.setattr(secrets, "token_hex", lambda size: "00" * size)
    patch.setattr(Files, "create", create_)


def forget_who_uses_bytes(patch: Patch) -> None:
    patch.setattr(Leases, "_is_used", lambda self, digest: self._names.has_digest(digest))


def recover_too_much(patch: Patch) -> None:
    recover = Blobs.recover
    patch.setattr(Blobs, "recover", lambda self, referenced: recover(self, sorted(referenced)[:-1]))


def leave_what_nobody_needs(patch: Patch) -> None:
    patch.setattr(Blobs, "recover", lambda self, referenced: None)


def sync_again_after_an_error(patch: Patch) -> None:
    sync = SeenFiles.sync

    def sync_(self: SeenFiles, file: BinaryIO) -> None:
        try:
            sync(self, file)
        except OSError:
            sync(self, file)

    patch.setattr(SeenFiles, "sync", sync_)


def trust_a_commit_that_failed(patch: Patch) -> None:
    """As if what was answered with an error had never come through."""
    patch.setattr(Catalog, "needs_reload", property(lambda self: False, lambda self, value: None),
                  raising=False)  # fmt: skip


def give_a_number_twice(patch: Patch) -> None:
    def next_version(self: Names, adapter: tuple[str, str]) -> int:
        versions = self.versions(adapter)
        return versions[-1].version + 1 if versions else 1

    patch.setattr(Names, "next_version", next_version)


def remember_what_a_reference_stood_for(patch: Patch) -> None:
    find = Names.find
    found: dict[Reference, AdapterRecord] = {}

    def find_(self: Names, reference: Reference, **more: Any) -> AdapterRecord:
        if reference not in found:
            found[reference] = find(self, reference, **more)
        return found[reference]

    patch.setattr(Names, "find", find_)


def keep_a_lease_after_an_error(patch: Patch) -> None:
    use = Leases.use
    leases: list[contextlib.AbstractContextManager[AdapterRecord]] = []

    @contextlib.contextmanager
    def use_(self: Leases, *arguments: Any) -> Iterator[AdapterRecord]:
        lease = use(self, *arguments)
        leases.append(lease)  # one that nobody has is given back by Python
        yield lease.__enter__()
        lease.__exit__(None, None, None)

    patch.setattr(Leases, "use", use_)


def give_a_lease_back_twice(patch: Patch) -> None:
    use = Leases.use

    @contextlib.contextmanager
    def use_(self: Leases, *arguments: Any) -> Iterator[AdapterRecord]:
        with use(self, *arguments) as record:
            yield record
            self._bytes[record.digest] -= 1

    patch.setattr(Leases, "use", use_)


def resolve_a_name_twice(patch: Patch) -> None:
    source_of = Registry.source_of

    def again(self: Registry, record: AdapterRecord) -> Any:
        return source_of(self, self.get(record.full_name))

    patch.setattr(Registry, "source_of", again)


def take_the_base_for_an_unknown_adapter(patch: Patch) -> None:
    @contextlib.contextmanager
    def resolve(request: Any, registry: Registry, *rest: Any) -> Iterator[Any]:
        try:
            registry.get(request.adapter)
        except NotFoundError:
            request.adapter = ""
        with resolve_adapters(request, registry, *rest) as choice:
            yield choice

    patch.setattr(generation, "resolve_adapters", resolve)


def give_room_back_twice(patch: Patch) -> None:
    def give_back(self: Quotas, reservation: Reservation) -> None:
        account = self._accounts[reservation.reference.tenant]
        account.reservations.discard(reservation)
        self._take_name(reservation.reference.tenant, account, reservation.reference.name)

    patch.setattr(Quotas, "give_back", give_back)
