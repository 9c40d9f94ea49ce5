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
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loramux.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
)
from loramux_adapters import read_package
from loramux_server.store.blobs import Blobs, Staged, StoreLockedError
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


def test_what_failed_while_it_came_leaves_nothing(registry: Registry, folder: Path) -> None:
    def receive() -> None:
        with staging(registry) as staged:
            staged.write(PACKAGES[0][:100])
            assert len(files(folder, "staging")) == 1
            raise ConnectionError

    with pytest.raises(ConnectionError):
        receive()
    assert files(folder, "staging") == set()


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


class Uses(RuleBasedStateMachine):
    """Any order of uploads, deletes, moves, leases and crashes, beside a model of all that."""

    names = st.sampled_from(["a", "b", "team/a"])
    numbers = st.integers(0, len(PACKAGES) - 1)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.registry = Registry(self.folder)
        self.versions: dict[str, dict[int, int]] = {}
        self.last: dict[str, int] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.leases: list[tuple[contextlib.ExitStack, AdapterRecord, int]] = []

    @rule(name=names, number=numbers, must_not_exist=st.booleans())
    def upload(self, name: str, number: int, must_not_exist: bool) -> None:
        versions = self.versions.get(name, {})
        is_newest = bool(versions) and versions[max(versions)] == number
        if must_not_exist and versions and not is_newest:
            with pytest.raises(AlreadyExistsError):
                put(self.registry, name, number, must_not_exist=True)
            return
        record = put(self.registry, name, number, must_not_exist=must_not_exist)
        if not is_newest:
            self.last[name] = self.last.get(name, 0) + 1
            self.versions.setdefault(name, {})[self.last[name]] = number
        assert record.version == max(self.versions[name])

    @rule(name=names, number=numbers)
    def upload_and_give_up(self, name: str, number: int) -> None:
        with published(self.registry, name, PACKAGES[number]):
            pass

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.versions:
            self.registry.delete(name)
            del self.versions[name]
            self.aliases = {key: v for key, v in self.aliases.items() if key[0] != name}
        else:
            with pytest.raises(NotFoundError):
                self.registry.delete(name)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def delete_a_version(self, data: st.DataObject) -> None:
        name, version = self.draw_version(data)
        if any(key[0] == name and held == version for key, held in self.aliases.items()):
            with pytest.raises(FailedPreconditionError, match="move it first"):
                self.registry.delete(f"{name}:{version}")
            return
        self.registry.delete(f"{name}:{version}")
        del self.versions[name][version]
        if not self.versions[name]:
            del self.versions[name]

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), alias=st.sampled_from(["stable", "canary"]), expected=st.integers(0, 3))
    def move_an_alias(self, data: st.DataObject, alias: str, expected: int) -> None:
        name, version = self.draw_version(data)
        before = self.aliases.get((name, alias), 0)

        def move() -> None:
            self.registry.aliases.set(
                parse_reference(name, "name"), alias, {version: 1},
                by="me", expected={expected: 1} if expected else {},
            )  # fmt: skip

        if before == expected:
            move()
            self.aliases[name, alias] = version
        else:
            with pytest.raises(AbortedError):
                move()

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        name, version = self.draw_version(data)
        stack = contextlib.ExitStack()
        record, _ = stack.enter_context(self.registry.lease(f"{name}:{version}"))
        self.leases.append((stack, record, self.versions[name][version]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        stack, _, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        stack.close()

    @rule()
    def crash(self) -> None:
        # The copy is what a crash leaves; what comes after it in the original does not count.
        copy = Path(tempfile.mkdtemp()) / "store"
        shutil.copytree(self.folder, copy)
        self.teardown()
        self.folder, self.registry = copy, Registry(copy)

    @invariant()
    def versions_and_aliases_stand_for_what_they_were_given(self) -> None:
        found: dict[str, dict[int, str]] = {}
        for record in self.registry.records(all_versions=True):
            found.setdefault(record.full_name, {})[record.version] = record.digest
        assert found == {
            name: {version: DIGESTS[number] for version, number in versions.items()}
            for name, versions in self.versions.items()
        }
        for name, versions in self.versions.items():
            assert self.registry.get(name).version == max(versions)
            aliases = self.registry.aliases.of(self.registry.get(name).adapter)
            expected = {a: (v,) for (n, a), v in self.aliases.items() if n == name}
            assert {alias: split.versions for alias, split in aliases.items()} == expected

    @invariant()
    def a_lease_keeps_its_version(self) -> None:
        for _, record, number in self.leases:
            assert record.digest == DIGESTS[number]
            assert Path(self.registry.source_of(record).path).read_bytes() == PACKAGES[number]

    @invariant()
    def bytes_are_there_for_versions_and_leases_and_for_nothing_else(self) -> None:
        named = {number for versions in self.versions.values() for number in versions.values()}
        needed = named | {number for _, _, number in self.leases}
        assert eventually(lambda: blobs(self.folder) == {DIGESTS[number] for number in needed})
        assert files(self.folder, "staging") == set()

    def draw_version(self, data: st.DataObject) -> tuple[str, int]:
        name = data.draw(st.sampled_from(sorted(self.versions)))
        return name, data.draw(st.sampled_from(sorted(self.versions[name])))

    def teardown(self) -> None:
        for stack, _, _ in self.leases:
            stack.close()
        self.leases = []
        self.registry.close()
        shutil.rmtree(self.folder)


Uses.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestUses = Uses.TestCase


# Threads


def lease_and_give_back(registry: Registry, name: str) -> bool:
    """Return whether a lease can be taken and given back at once."""

    def use() -> None:
        with registry.lease(name):
            pass

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(timeout=2)
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
            assert has_begun.wait(timeout=30)
            was_free = lease_and_give_back(registry, "a")
        writing.result()
        assert was_free
    assert registry.names() == ["a"]


def test_leases_do_not_wait_for_files_to_go(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "a", 0)
    put(registry, "b", 1)
    with slow(monkeypatch, Blobs, "remove") as has_begun:
        with registry.lease("a"):
            deleting = threading.Thread(target=registry.delete, args=["a"])
            deleting.start()
            deleting.join(timeout=30)
        assert has_begun.wait(timeout=30)
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
        assert has_begun.wait(timeout=30)
        again = pool.submit(put, registry, "b", 0)
        time.sleep(0.05)  # for it to come as far as it can
    deleting.result()
    again.result()
    assert (registry.names(), blobs(folder)) == (["b"], {DIGESTS[0]})
