"""The registry: names, the bytes behind them, and what is left of both after a crash."""

import contextlib
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramux.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from loramux_adapters import read_package
from loramux_server.store.blobs import Blobs, Staged, StoreLockedError
from loramux_server.store.names import Names
from loramux_server.store.record import AdapterRecord, directory_record
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry
from tests.support.packages import small_package
from tests.support.polling import eventually
from tests.support.slow import slow

PACKAGES = [small_package(number) for number in range(3)]
A = parse_reference("a", "name")
DIGESTS = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in PACKAGES]


@contextlib.contextmanager
def staging(registry: Registry) -> Iterator[Staged]:
    """The time in which an upload comes."""
    staged = registry.stage()
    try:
        yield staged
    finally:
        registry.discard(staged)


@contextlib.contextmanager
def published(registry: Registry, name: str, data: bytes) -> Iterator[AdapterRecord]:
    """The moment between the bytes of an upload and its name."""
    with staging(registry) as staged:
        staged.write(data)
        checked = read_package(staged.file, staged.size)
        yield registry.publish(name, staged, checked)


def put(
    registry: Registry, name: str, number: int, *, must_not_exist: bool = False
) -> AdapterRecord:
    with published(registry, name, PACKAGES[number]) as record:
        return registry.register(record, must_not_exist=must_not_exist)[0]


def files(folder: Path, kind: str) -> set[str]:
    return {path.name for path in (folder / kind).rglob("*") if path.is_file()}


def blobs(folder: Path) -> set[str]:
    return {f"sha256:{name}" for name in files(folder, "blobs")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    registry = Registry(folder)
    yield registry
    registry.close()


@contextlib.contextmanager
def after_a_crash(folder: Path) -> Iterator[tuple[Registry, Path]]:
    """What the next server finds if this one ends now, without another word."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "store"
        shutil.copytree(folder, copy)
        registry = Registry(copy)
        yield registry, copy
        registry.close()


# Names


def test_a_record_says_what_was_uploaded(registry: Registry) -> None:
    record = put(registry, "a", 0)
    assert registry.get("a") == record
    assert (record.digest, record.size_bytes) == (DIGESTS[0], len(PACKAGES[0]))
    assert (record.rank, record.num_bytes) == (2, 4 * 2 * (3 + 4))
    assert record.target_modules == ("q_proj",)
    assert (record.base_model, record.source) == ("somebody/base", "upload")


def test_names_are_in_order(registry: Registry) -> None:
    for name in ("b", "a.1", "a", "a-1"):
        put(registry, name, 0)
    assert registry.names() == ["a", "a-1", "a.1", "b"]
    assert [record.name for record in registry.records()] == registry.names()
    assert len(registry) == 4


@pytest.mark.parametrize("must_not_exist", [False, True])
def test_the_same_content_again_changes_nothing(registry: Registry, must_not_exist: bool) -> None:
    first = put(registry, "a", 0)
    assert put(registry, "a", 0, must_not_exist=must_not_exist) is first
    assert registry.get("a") is first


def test_other_content_is_the_next_version_unless_it_must_not_be(
    registry: Registry, folder: Path
) -> None:
    put(registry, "a", 0)
    with pytest.raises(AlreadyExistsError, match="'a'"):
        put(registry, "a", 1, must_not_exist=True)
    assert (registry.get("a").digest, blobs(folder)) == (DIGESTS[0], {DIGESTS[0]})
    put(registry, "a", 1)
    assert [registry.get(f"a:{version}").digest for version in (1, 2)] == DIGESTS[:2]
    assert registry.get("a") == registry.get("a:latest") == registry.get("a:2")
    assert blobs(folder) == set(DIGESTS[:2])
    # What was the newest once comes back under a number of its own.
    assert put(registry, "a", 0).version == 3


def test_a_version_can_be_deleted_and_its_number_is_not_given_again(
    registry: Registry, folder: Path
) -> None:
    for number in (0, 1):
        put(registry, "a", number)
    registry.delete("a:2")
    assert (registry.get("a").version, blobs(folder)) == (1, {DIGESTS[0]})
    assert put(registry, "a", 2).version == 3
    registry.delete("a")
    assert (registry.names(), blobs(folder)) == ([], set())
    with after_a_crash(folder) as (recovered, _):
        assert put(recovered, "a", 0).version == 4


def test_a_name_of_the_directory_is_not_for_uploads(registry: Registry, folder: Path) -> None:
    with published(registry, "a", PACKAGES[0]) as record:
        registry.register(directory_record(record, "stamp"))
    for number in (0, 1):
        with pytest.raises(FailedPreconditionError, match="--adapters"):
            put(registry, "a", number)
    with pytest.raises(FailedPreconditionError, match="--adapters"):
        registry.delete("a")
    assert blobs(folder) == {DIGESTS[0]}
    registry.forget_directory("a")
    assert (registry.names(), blobs(folder)) == ([], set())


def test_files_of_the_directory_that_were_only_touched_get_a_new_stamp(registry: Registry) -> None:
    for stamp in ("old", "new"):
        with published(registry, "a", PACKAGES[0]) as record:
            registry.register(directory_record(record, stamp))
    found = registry.get("a")
    assert (found.stamp, found.version) == ("new", 1)
    with registry.lease("a") as (_, source):
        assert Path(source.path).exists()


def test_what_is_not_there_cannot_be_named(registry: Registry) -> None:
    for call in (registry.get, registry.delete, lambda name: registry.lease(name).__enter__()):
        with pytest.raises(NotFoundError, match="'a'"):
            call("a")


def test_files_of_the_directory_that_changed_take_the_place_of_what_no_alias_keeps(
    registry: Registry, folder: Path
) -> None:
    for number in range(3):
        with published(registry, "a", PACKAGES[number]) as record:
            registry.register(directory_record(record, str(number)))
        if not number:
            registry.aliases.set(A, "stable", {1: 1}, by="me")
    assert [record.version for record in registry.versions("a")] == [1, 3]
    assert blobs(folder) == {DIGESTS[0], DIGESTS[2]}


# Bytes


def test_a_lease_keeps_the_version_that_it_began_with(registry: Registry, folder: Path) -> None:
    gone: list[str] = []
    registry.leases.on_gone = gone.append
    put(registry, "a", 0)
    with registry.lease("a") as (record, source):
        put(registry, "a", 1)
        registry.delete("a")
        assert registry.leases.num_requests(record) == 1
        assert record.digest == source.digest == DIGESTS[0]
        assert Path(source.path).read_bytes() == PACKAGES[0]
        assert gone == [DIGESTS[1]]
    assert eventually(lambda: gone == [DIGESTS[1], DIGESTS[0]])
    assert blobs(folder) == set()


def test_a_lease_is_given_back_once_also_by_a_call_that_fails(
    registry: Registry, folder: Path
) -> None:
    put(registry, "a", 0)
    with contextlib.suppress(ConnectionError), registry.lease("a"):
        raise ConnectionError
    assert registry.leases.num_requests(registry.get("a")) == 0
    with registry.lease("a"):
        with registry.lease("a"):
            registry.delete("a")
        time.sleep(0.05)  # for bytes to go that must not
        assert blobs(folder) == {DIGESTS[0]}
    assert eventually(lambda: blobs(folder) == set())


def test_a_lease_on_an_older_version_has_the_bytes_of_that_version(registry: Registry) -> None:
    for number in (0, 1):
        put(registry, "a", number)
    with registry.lease("a:1") as (record, source):
        assert (record.version, record.digest, source.digest) == (1, DIGESTS[0], DIGESTS[0])
        assert Path(source.path).read_bytes() == PACKAGES[0]


def test_names_share_bytes_until_the_last_of_them_goes(registry: Registry, folder: Path) -> None:
    gone: list[str] = []
    registry.leases.on_gone = gone.append
    for name in ("a", "b"):
        put(registry, name, 0)
    registry.delete("a")
    assert (gone, blobs(folder)) == ([], {DIGESTS[0]})
    registry.delete("b")
    assert (gone, blobs(folder)) == ([DIGESTS[0]], set())


def test_what_was_not_registered_leaves_nothing(registry: Registry, folder: Path) -> None:
    put(registry, "a", 1)
    with published(registry, "b", PACKAGES[0]) as record:
        assert blobs(folder) == {DIGESTS[0], DIGESTS[1]}
        assert "b" not in registry.names()
        assert registry.source_of(record).digest == DIGESTS[0]
    with published(registry, "b", PACKAGES[1]):  # of which another name needs the bytes
        pass
    assert blobs(folder) == {DIGESTS[1]}
    assert files(folder, "staging") == set()


def test_uploads_that_come_at_once_keep_apart(registry: Registry) -> None:
    with staging(registry) as first, staging(registry) as second:
        for number, staged in enumerate((first, second)):
            staged.write(PACKAGES[number])
        for number, staged in enumerate((first, second)):
            checked = read_package(staged.file, staged.size)
            record = registry.publish(f"n{number}", staged, checked)
            registry.register(record)
        for number in range(2):
            path = Path(registry.source_of(registry.get(f"n{number}")).path)
            assert path.read_bytes() == PACKAGES[number]


def test_what_failed_while_it_came_leaves_nothing(registry: Registry, folder: Path) -> None:
    def receive() -> None:
        with staging(registry) as staged:
            staged.write(PACKAGES[0][:100])
            assert len(files(folder, "staging")) == 1
            raise ConnectionError

    with pytest.raises(ConnectionError):
        receive()
    assert files(folder, "staging") == set()


def test_requests_and_uploads_that_keep_bytes_are_counted(registry: Registry) -> None:
    put(registry, "a", 0)
    with registry.lease("a"), registry.lease("a:1"), published(registry, "b", PACKAGES[1]):
        assert len(registry.leases) == 3
    assert len(registry.leases) == 0


def test_who_waits_for_a_version_learns_when_its_last_request_ends(registry: Registry) -> None:
    reported: list[str] = []
    record = put(registry, "a", 0)
    put(registry, "b", 0)  # other requests for the same bytes do not count
    with registry.lease("b"):
        registry.leases.when_idle(record, lambda: reported.append("at once"))
        assert reported == ["at once"]
        with registry.lease("a"):
            with registry.lease("a"):
                registry.leases.when_idle(record, lambda: reported.append("first"))
                registry.leases.when_idle(record, lambda: reported.append("second"))
            assert reported == ["at once"]
        assert reported == ["at once", "first", "second"]
    with registry.lease("a"):
        pass
    assert reported == ["at once", "first", "second"]


def test_who_waits_for_a_deleted_version_learns_when_its_bytes_are_gone(
    registry: Registry, folder: Path
) -> None:
    found: list[set[str]] = []
    record = put(registry, "a", 0)
    with registry.lease("a"):
        registry.delete("a")
        registry.leases.when_idle(record, lambda: found.append(blobs(folder)))
        assert found == []
    assert eventually(lambda: found == [set()])


def test_an_upload_heals_bytes_that_were_damaged(registry: Registry) -> None:
    put(registry, "a", 0)
    with registry.lease("a") as (_, source):
        Path(source.path).write_bytes(b"damaged")
    put(registry, "a", 0)
    assert Path(source.path).read_bytes() == PACKAGES[0]


def test_nobody_else_may_read_the_store(registry: Registry, folder: Path) -> None:
    put(registry, "a", 0)
    for path in (folder / "blobs").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_store_is_for_one_server(registry: Registry, folder: Path) -> None:
    put(registry, "a", 0)
    with pytest.raises(StoreLockedError, match="in use"):
        Registry(folder)
    registry.close()
    again = Registry(folder)
    assert again.names() == ["a"]
    again.close()


# Crashes


def test_what_was_registered_is_there_after_a_crash(registry: Registry, folder: Path) -> None:
    kept = put(registry, "a", 0)
    with after_a_crash(folder) as (recovered, copy):
        assert recovered.get("a") == kept
        assert blobs(copy) == {DIGESTS[0]}
        with recovered.lease("a") as (_, source):
            assert Path(source.path).read_bytes() == PACKAGES[0]


def test_an_upload_that_was_coming_is_gone_after_a_crash(registry: Registry, folder: Path) -> None:
    with staging(registry) as staged:
        staged.write(PACKAGES[0])
        staged.file.flush()
        with after_a_crash(folder) as (recovered, copy):
            assert (recovered.names(), files(copy, "staging"), blobs(copy)) == ([], set(), set())


def test_bytes_without_a_name_are_gone_after_a_crash(registry: Registry, folder: Path) -> None:
    put(registry, "a", 1)
    with (
        published(registry, "b", PACKAGES[0]),
        after_a_crash(folder) as (recovered, copy),
    ):
        assert (recovered.names(), blobs(copy)) == (["a"], {DIGESTS[1]})


def test_what_was_deleted_in_use_is_gone_after_a_crash(registry: Registry, folder: Path) -> None:
    put(registry, "a", 0)
    with registry.lease("a"):
        registry.delete("a")
        assert blobs(folder) == {DIGESTS[0]}
        with after_a_crash(folder) as (recovered, copy):
            assert (recovered.names(), blobs(copy)) == ([], set())


# Threads


def lease_and_give_back(registry: Registry, name: str) -> bool:
    """Return whether a lease can be taken and given back at once."""

    def use() -> None:
        with registry.lease(name):
            pass

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(timeout=20)
    return not thread.is_alive()


def test_leases_do_not_wait_for_the_database(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "a", 0)
    for method, change in (
        ("add", lambda: put(registry, "b", 1)),
        ("remove", lambda: registry.delete("b")),
    ):
        with (
            ThreadPoolExecutor() as pool,
            slow(monkeypatch, registry.catalog, method) as has_begun,
        ):
            writing = pool.submit(change)
            assert has_begun.wait(timeout=60)
            was_free = lease_and_give_back(registry, "a")
        writing.result()
        assert was_free
    assert registry.names() == ["a"]


def test_a_name_is_not_looked_up_while_it_goes(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "a", 0)
    with ThreadPoolExecutor() as pool:
        with slow(monkeypatch, Names, "_set_end") as has_begun:
            pool.submit(registry.delete, "a")
            assert has_begun.wait(timeout=60)
            looking = pool.submit(registry.check_writable, "a", "name")
            time.sleep(0.05)
            assert not looking.done()
        assert looking.result() is None


def test_leases_do_not_wait_for_files_to_go(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "a", 0)
    put(registry, "b", 1)
    with slow(monkeypatch, Blobs, "remove") as has_begun:
        with registry.lease("a"):
            deleting = threading.Thread(target=registry.delete, args=["a"])
            deleting.start()
            deleting.join(timeout=60)
        assert has_begun.wait(timeout=60)
        assert lease_and_give_back(registry, "b")
        assert blobs(folder) == {DIGESTS[0], DIGESTS[1]}
    assert eventually(lambda: blobs(folder) == {DIGESTS[1]})


def test_bytes_that_come_back_while_they_go_are_there(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "a", 0)
    with (
        ThreadPoolExecutor() as pool,
        slow(monkeypatch, Blobs, "remove") as has_begun,
    ):
        deleting = pool.submit(registry.delete, "a")
        assert has_begun.wait(timeout=60)
        again = pool.submit(put, registry, "b", 0)
        time.sleep(0.05)  # for it to come as far as it can
    deleting.result()
    again.result()
    assert (registry.names(), blobs(folder)) == (["b"], {DIGESTS[0]})


def test_what_a_crash_left_of_an_import_goes(registry: Registry, folder: Path) -> None:
    with registry.blobs.scratch() as scratch:
        (scratch / "adapter_config.json").write_text("{}")
        with after_a_crash(folder) as (_, copy):
            assert list((copy / "staging").iterdir()) == []
    assert list((folder / "staging").iterdir()) == []
