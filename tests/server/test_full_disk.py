"""A store whose disk is full: what frees something and what is small is done, nothing else."""

import datetime
import errno
import os
import resource
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from loramux.cli.app import run
from loramux.errors import ResourceExhaustedError
from loramux.v1.adapters_pb2 import DeleteAdapterRequest
from loramux.v1.aliases_pb2 import SetAliasRequest, Split
from loramux.v1.quarantine_pb2 import ClearQuarantinedRequest
from loramux_server.engine_link.quarantine import MAX_NOT_FINITE, Quarantine
from loramux_server.observe.audit import Audit
from loramux_server.services.quarantine import QuarantineService
from loramux_server.store.catalog import Catalog
from loramux_server.store.key_records import KeyRecord
from loramux_server.store.registry import Registry
from loramux_server.store.reserve import RESERVE_BYTES, Reserve
from loramux_server.store.transactions import Transactions
from tests.support.packages import publish, small_package
from tests.support.services import CONTEXT, InstantEngine, Services
from tests.support.small_disk import fill, small_disk

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
KEY = KeyRecord(id="k1", tenant="acme", role="user", label="", digest="0" * 64, created_at=NOW)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2 * RESERVE_BYTES) as disk:
        yield disk


@pytest.fixture
def registry(disk: Path) -> Iterator[Registry]:
    """Has three versions of `a`, and a key."""
    registry = Registry(disk / "store")
    for number in range(3):
        publish(registry, "a", small_package(number))
    registry.catalog.keys.add(KEY)
    yield registry
    registry.close()


def free(disk: Path) -> int:
    """How many bytes fit the disk."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


async def delete(registry: Registry) -> None:
    path = registry.blobs.path(registry.get("a:1").digest)
    services = Services(registry, InstantEngine())
    await services.adapters.DeleteAdapter(DeleteAdapterRequest(name="a:1"), CONTEXT)
    assert not path.exists()


async def move(registry: Registry) -> None:
    request = SetAliasRequest(name="a", alias="stable", split=Split(weights={1: 1}))
    await Services(registry, InstantEngine()).aliases.SetAlias(request, CONTEXT)


async def clear(registry: Registry) -> None:
    quarantine = Quarantine(0)
    service = QuarantineService(quarantine, registry, Audit())
    quarantine.on_refused = lambda entry: None
    digest = registry.get("a:1").digest
    for _ in range(MAX_NOT_FINITE):
        quarantine.was_not_finite(digest)
    await service.ClearQuarantined(ClearQuarantinedRequest(key=digest), CONTEXT)


async def revoke(registry: Registry) -> None:
    registry.catalog.keys.revoke("k1", NOW)


AFTER: dict[Callable[[Registry], Awaitable[None]], Callable[[Catalog], object]] = {
    delete: lambda catalog: [record.version for record in catalog.versions()] == [2, 3],
    move: lambda catalog: [alias for _, alias, _ in catalog.aliases()] == ["stable"],
    clear: lambda catalog: catalog.note("quarantine") == "[]",
    revoke: lambda catalog: [key.revoked_at for key in catalog.keys.all()] == [NOW],
}
"""Call -> whether it was done."""


@pytest.mark.parametrize("call", AFTER, ids=lambda call: call.__name__)
async def test_what_frees_something_or_is_small_is_done(
    registry: Registry, disk: Path, call: Callable[[Registry], Awaitable[None]]
) -> None:
    fill(disk)
    await call(registry)
    assert not registry.catalog.needs_reload
    found = Catalog.in_folder(disk / "store")
    assert AFTER[call](found)
    found.close()


async def test_new_versions_do_not_take_what_was_kept_or_given_up(
    registry: Registry, disk: Path
) -> None:
    services = Services(registry, InstantEngine())
    others = fill(disk)
    with pytest.raises(ResourceExhaustedError, match="the store is full"):
        await services.send("b", small_package(9))
    reserve = registry.catalog.reserve
    assert reserve
    assert reserve.is_kept
    await revoke(registry)
    assert not reserve.is_kept
    left = free(disk)
    assert left > RESERVE_BYTES // 2
    with pytest.raises(ResourceExhaustedError, match="the store is full"):
        await services.send("b", small_package(9))
    with pytest.raises(OSError, match="No space"), registry.blobs.scratch():
        pass
    assert free(disk) == left
    others.unlink()
    await services.finish(await services.send("b", small_package(9)))
    assert reserve.is_kept
    services.uploads.close()


async def test_a_name_alone_does_not_take_what_was_kept(registry: Registry, disk: Path) -> None:
    fill(disk)
    record = replace(registry.get("a:1"), name="b")
    with pytest.raises(sa.exc.OperationalError, match="full"):
        registry.catalog.add(record)
    assert registry.catalog.reserve
    assert registry.catalog.reserve.is_kept


def test_room_is_kept_again_when_bytes_have_gone(registry: Registry, disk: Path) -> None:
    large = fill(disk).rename(disk / "store" / "blobs" / "large")
    registry.catalog.keys.revoke("k1", NOW)
    large.unlink()
    registry.delete("a:1")
    assert registry.catalog.reserve
    assert registry.catalog.reserve.is_kept


def test_keys_are_revoked_where_no_server_runs(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_key = Registry(disk / "store")
    with_key.catalog.keys.add(KEY)
    with_key.close()
    fill(disk)
    monkeypatch.setattr(
        sys, "argv", ["loramux", "keys", "revoke", "k1", "--store", str(disk / "store")]
    )
    with pytest.raises(SystemExit) as end:
        run()
    assert not end.value.code
    assert Reserve(disk / "store").is_kept, "the log was emptied"
    found = Catalog.in_folder(disk / "store")
    assert found.keys.all()[0].revoked_at
    found.close()


def test_a_store_with_too_little_room_says_so(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    (disk / "others").write_bytes(bytes(RESERVE_BYTES + 1))
    Registry(disk / "store").close()
    assert "less than 8 MiB free: no new adapters" in caplog.text


def test_a_copy_of_a_store_has_room_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "reserve").open("wb") as file:
        file.truncate(RESERVE_BYTES)
    Registry(tmp_path).close()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES


@pytest.mark.parametrize("times", [1, 2])
def test_a_change_is_tried_once_more_while_nobody_keeps_the_room(
    tmp_path: Path, times: int
) -> None:
    reserve = Reserve(tmp_path)
    assert reserve.keep()
    transactions = Transactions(sa.create_engine("sqlite://"), reserve)
    asked = []

    def change(connection: sa.Connection) -> str:
        asked.append((reserve.is_kept, reserve.keep()))
        if len(asked) <= times:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorname = "SQLITE_FULL"
            raise sa.exc.OperationalError("UPDATE", {}, full)
        return "done"

    if times == 1:
        assert transactions.small(change) == "done"
    else:
        with pytest.raises(sa.exc.OperationalError):
            transactions.small(change)
    assert asked == [(True, True), (False, False)]
    reserve.close()
    assert reserve.is_kept
    transactions.engine.dispose()


def test_a_disk_that_keeps_no_room_takes_new_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    registry = Registry(tmp_path)
    assert publish(registry, "a", small_package(0)).version == 1
    registry.close()


def test_a_lack_of_descriptors_does_not_end_reserving(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert reserve.keep()  # says nothing of the disk
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not reserve.is_kept
    assert reserve.keep()
    assert reserve.is_kept
