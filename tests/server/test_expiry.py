"""Versions that stay for a while: how long may be asked for, and what goes when it is over."""

import asyncio
import datetime
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy.exc
from google.protobuf.duration_pb2 import Duration

from loramux.errors import InvalidArgumentError, NotFoundError
from loramux_adapters import read_package
from loramux_server.services.adapters.expiry import end_of, keep_expiring, ttl_of
from loramux_server.store.catalog import Catalog
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry
from loramux_server.store.write_lock import REMOVED
from loramux_server.tasks import cancel_and_wait
from tests.support.packages import publish, small_package
from tests.support.polling import eventually

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


def put(registry: Registry, name: str, number: int, ends: datetime.datetime | None) -> None:
    """Register a package as an upload does that says when it expires."""
    staged = registry.stage()
    try:
        staged.write(small_package(number))
        checked = read_package(staged.file, staged.size)
        record = replace(registry.publish(name, staged, checked), expires_at=ends)
        registry.register(record)
    finally:
        registry.discard(staged)


def expired(registry: Registry, now: datetime.datetime) -> list[str]:
    return [str(record) for record in registry.expire(now)]


def test_what_stayed_long_enough_goes_and_nothing_else(registry: Registry) -> None:
    put(registry, "a", 0, NOW + HOUR)
    put(registry, "a", 1, None)
    put(registry, "b", 2, NOW)
    put(registry, "c", 3, NOW + 2 * HOUR)
    gone: list[tuple[str, AdapterRecord]] = []
    registry.follow(lambda what, record: gone.append((what, record)))
    assert expired(registry, NOW - HOUR) == []
    assert expired(registry, NOW) == ["b:1"]
    assert expired(registry, NOW + HOUR) == ["a:1"]
    assert expired(registry, NOW + HOUR) == []
    assert [(what, str(record)) for what, record in gone] == [(REMOVED, "b:1"), (REMOVED, "a:1")]
    assert registry.names() == ["a", "c"]
    with pytest.raises(NotFoundError, match="no version 1"):
        registry.get("a:1")


def test_the_newest_of_several_may_go_first(registry: Registry) -> None:
    put(registry, "a", 0, None)
    put(registry, "a", 1, NOW)
    assert expired(registry, NOW) == ["a:2"]
    assert str(registry.get("a")) == "a:1"
    put(registry, "a", 1, None)
    assert str(registry.get("a")) == "a:3"


def test_its_bytes_go_when_the_last_request_ends(registry: Registry) -> None:
    put(registry, "a", 0, NOW)
    with registry.lease("a") as (record, source):
        assert expired(registry, NOW) == ["a:1"]
        assert Path(source.path).exists()
        assert registry.leases.num_requests(record) == 1
    registry.leases.close()
    assert not Path(source.path).exists()


def test_an_alias_keeps_what_it_stands_for(registry: Registry) -> None:
    put(registry, "a", 0, NOW)
    put(registry, "a", 1, None)
    adapter = parse_reference("a", "name")
    registry.aliases.set(adapter, "stable", {1: 95, 2: 5}, by="me")
    assert expired(registry, NOW + HOUR) == []
    assert registry.get("a:stable").version == 1
    registry.aliases.set(adapter, "stable", {2: 1}, by="me")
    assert expired(registry, NOW + HOUR) == ["a:1"]


def test_the_same_content_stays_as_long_as_was_said_last(registry: Registry) -> None:
    for ends in (NOW, NOW + HOUR, None, NOW + 2 * HOUR):
        put(registry, "a", 0, ends)
        assert (registry.get("a").version, registry.get("a").expires_at) == (1, ends)
    assert expired(registry, NOW + HOUR) == []
    assert expired(registry, NOW + 2 * HOUR) == ["a:1"]


def test_what_changes_of_a_version_is_kept(registry: Registry, tmp_path: Path) -> None:
    put(registry, "a", 0, NOW)
    registry.change("a", lambda record: replace(record, expires_at=NOW + HOUR, is_pinned=True))
    registry.close()
    again = Registry(tmp_path)
    assert (again.get("a").expires_at, again.get("a").is_pinned) == (NOW + HOUR, True)
    assert expired(again, NOW) == []
    again.change("a", lambda record: replace(record, expires_at=None))
    assert expired(again, NOW + HOUR) == []
    again.close()


def test_a_catalog_in_which_nothing_expired_gets_to_know_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    publish(registry, "a", small_package(0))
    registry.close()
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    for column in ("expires_at", "origin"):
        connection.execute(f"ALTER TABLE versions DROP COLUMN {column}")
    connection.execute("UPDATE store SET value = '3' WHERE key = 'format'")
    connection.commit()
    connection.close()
    for ends in (None, NOW):
        registry = Registry(tmp_path)
        found = registry.get("a")
        assert (found.version, found.expires_at, found.origin) == (1, ends, "")
        registry.change("a", lambda record: replace(record, expires_at=NOW))
        registry.close()


@pytest.mark.parametrize("seconds", [1, 90, 86400 * 3650])
def test_a_time_within_the_limits_is_taken(seconds: int) -> None:
    assert ttl_of(Duration(seconds=seconds), "ttl") == datetime.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "message",
    [
        Duration(), Duration(seconds=-5), Duration(nanos=999_999_999),
        Duration(seconds=86400 * 3650 + 1), Duration(seconds=(1 << 63) - 1),
        Duration(seconds=-(1 << 63)),
    ],
)  # fmt: skip
def test_a_time_out_of_the_limits_is_refused(message: Duration) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^ttl is .* s.*expected 1 s to 3,650 days$"):
        ttl_of(message, "ttl")


def test_who_asks_for_no_time_gets_no_end() -> None:
    assert end_of(None) is None
    end = end_of(HOUR)
    assert end is not None
    assert abs(end - datetime.datetime.now(datetime.UTC) - HOUR) < HOUR / 60


async def test_what_expires_goes_once_the_database_answers_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "a", 0, NOW - 20 * 365 * 24 * HOUR)
    remove, errors = Catalog.remove, [sqlalchemy.exc.InternalError("", {}, Exception("read-only"))]

    def failing(catalog: Catalog, records: list[AdapterRecord]) -> None:
        if errors:
            raise errors.pop()
        remove(catalog, records)

    monkeypatch.setattr(Catalog, "remove", failing)
    task = asyncio.create_task(keep_expiring(registry, 0.01))
    assert await asyncio.to_thread(eventually, lambda: not registry.names())
    await cancel_and_wait(task)
