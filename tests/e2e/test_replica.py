"""A server that has the adapters of another one."""

import asyncio
import datetime
import errno
import hashlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loramux import Client
from loramux import _adapter_wire as wire
from loramux.errors import (
    FailedPreconditionError,
    LoramuxError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.types import Adapter
from loramux.v1 import adapters_pb2
from loramux_adapters import read_package
from loramux_server.access.caller import Role
from loramux_server.access.key import parse_key
from loramux_server.config import ConfigError, make_config
from loramux_server.opening import mark_replica
from loramux_server.origins import primary_of
from loramux_server.replica import mirror as mirror_module
from loramux_server.replica.mirror import Mirror
from loramux_server.replica.primary import Primary
from loramux_server.store.alias import Split
from loramux_server.store.blobs import Staged
from loramux_server.store.registry import Registry
from tests.support.access import Keys
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.packages import publish, small_package
from tests.support.polling import eventually
from tests.support.server import RunningServer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PEFT folders."""
    model, parent = tiny_model("llama", vocab_size=259), tmp_path_factory.mktemp("peft")
    return [
        save_adapter(model, parent / str(seed), seed=seed, r=4, target_modules="all-linear")
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory, roomy_base: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("primary")
    keys = Keys(folder / "store")
    key = keys.make("public", Role.ADMIN)
    (folder / "admin.key").write_text(key.text)
    (folder / "acme.key").write_text(keys.make("acme", Role.PUBLISHER).text)
    (folder / "acme-admin.key").write_text(keys.make("acme", Role.ADMIN).text)
    keys.close()
    with RunningServer(folder, roomy_base) as server:
        server.stay_at_address()
        yield server


@pytest.fixture(scope="module")
def replica(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, primary: RunningServer
) -> Iterator[RunningServer]:
    """It knows the same keys."""
    folder = tmp_path_factory.mktemp("replica")
    keys = Keys(folder / "store")
    for name, tenant, role in (("admin", "public", Role.ADMIN), ("acme", "acme", Role.PUBLISHER)):
        key = parse_key(key_of(primary, name))
        assert key is not None
        keys.manager.add(key, tenant=tenant, role=role)
    keys.close()
    file = primary.log.parent / "admin.key"
    with RunningServer(
        folder, roomy_base, "--replica-of", primary.target, "--replica-key", str(file)
    ) as server:
        yield server


def key_of(primary: RunningServer, name: str) -> str:
    return (primary.log.parent / f"{name}.key").read_text()


@pytest.fixture
def there(primary: RunningServer) -> Iterator[Client]:
    """An administrator of the primary."""
    with primary.client(key=key_of(primary, "admin")) as client:
        yield client
        for adapter in client.adapters.list():
            client.adapters.delete(adapter.reference.rpartition(":")[0])


@pytest.fixture
def here(primary: RunningServer, replica: RunningServer) -> Iterator[Client]:
    """An administrator of the replica."""
    with replica.client(key=key_of(primary, "admin")) as client:
        yield client


def state(client: Client) -> list[object]:
    """Everything that a replica has in common with its primary."""
    found = client.adapters.list(all_versions=True)
    names = sorted({a.reference.rpartition(":")[0] for a in found})
    return [found, {name: client.adapters.aliases(name) for name in names}]


def same(here: Client, there: Client) -> bool:
    def is_same() -> bool:
        try:
            return state(here) == state(there)
        except NotFoundError:  # an adapter went while its aliases were asked for
            return False

    return eventually(is_same, 20)


def test_what_happens_at_the_primary_happens_here(
    here: Client, there: Client, folders: list[Path]
) -> None:
    for folder in folders:
        there.adapters.upload("bot", folder)
    there.adapters.upload("acme/bot", folders[0], ttl=datetime.timedelta(hours=1))
    there.adapters.set_alias("bot", "stable", version=1)
    there.adapters.set_alias("bot", "trial", weights={1: 9, 3: 1})
    assert same(here, there)
    greedy = {"max_tokens": 8, "temperature": 0}
    for reference in ("bot:1", "bot:stable", "bot", "acme/bot"):
        mine = here.generate("hello", adapter=reference, **greedy)  # type: ignore[arg-type]
        its = there.generate("hello", adapter=reference, **greedy)  # type: ignore[arg-type]
        assert (mine.token_ids, mine.adapter) == (its.token_ids, its.adapter)
    there.adapters.delete_alias("bot", "trial")
    there.adapters.delete("bot:2")
    there.adapters.set_ttl("acme/bot", None)
    assert same(here, there)
    there.adapters.delete("bot")
    assert same(here, there)
    with pytest.raises(NotFoundError):
        here.generate("hello", adapter="bot", max_tokens=1)


def test_who_changes_something_here_changes_it_at_the_primary(
    here: Client, there: Client, primary: RunningServer, replica: RunningServer, folders: list[Path]
) -> None:
    with replica.client(key=key_of(primary, "acme")) as acme:
        first = acme.adapters.upload("cat", folders[0])
        assert acme.generate("hello", adapter="cat", max_tokens=1).adapter is not None  # at once
        second = acme.adapters.upload("cat", folders[1])
        assert [each.version for each in (first, second)] == [1, 2]
        assert second.reference == "cat:2"
        assert acme.adapters.set_alias("cat", "stable", version=1) == {1: 1}
        assert acme.generate("hello", adapter="cat:stable", max_tokens=1).adapter.version == 1  # type: ignore[union-attr]
        acme.adapters.set_alias("cat", "stable", version=2)
        assert acme.adapters.roll_back("cat", "stable") == {1: 1}
        assert len(acme.adapters.alias_moves("cat", "stable")) == 3
        assert state(here) == state(there)
        acme.adapters.delete("cat:2")
        assert [a.version for a in acme.adapters.list(all_versions=True)] == [1]
        assert state(here) == state(there)
        assert acme.adapters.upload("cat", folders[2]).version == 3
        with pytest.raises(PermissionDeniedError):
            acme.adapters.upload("public/cat", folders[2])


def test_a_name_may_say_its_tenant_though_it_need_not(
    here: Client, there: Client, folders: list[Path]
) -> None:
    for folder in folders[:2]:
        here.adapters.upload("public/dog", folder)
    here.adapters.set_alias("public/dog", "stable", version=2)
    digests = [adapter.digest for adapter in here.adapters.list(all_versions=True)]
    for act in (
        lambda: here.adapters.delete_alias("public/dog", "stable"),
        lambda: here.adapters.alias_moves("public/dog", "stable"),
        lambda: here.adapters.delete("public/dog:1"),
    ):
        act()
        assert state(here) == state(there)
    assert [adapter.digest for adapter in here.adapters.list(all_versions=True)] == digests[:1]


async def test_the_key_of_a_replica_is_of_an_administrator_of_any_tenant(
    there: Client, primary: RunningServer, folders: list[Path], tmp_path: Path
) -> None:
    there.adapters.upload("owl", folders[0])
    there.adapters.upload("acme/owl", folders[1])
    there.adapters.set_alias("owl", "stable", version=1)
    for name in ("acme-admin", "admin"):
        asked = Primary(primary.target, key=key_of(primary, name), authorities=None)
        with closing(Registry(tmp_path / name)) as registry:
            await asked.check_admin_key()
            (first,), (second,) = (await asked.versions()).values()
            assert (await asked.versions("owl")) == {"owl": [second]}
            assert (await asked.versions("acme/owl")) == {"acme/owl": [first]}
            assert (await asked.aliases("owl"), await asked.aliases("acme/owl")) == (
                {"stable": Split.of({1: 1})},
                {},
            )
            for adapter in (first, second):
                staged = registry.stage()
                await asked.fetch(adapter, staged)
                assert staged.digest == adapter.digest
                registry.discard(staged)
        await asked.close()
    asked = Primary(primary.target, key=key_of(primary, "acme"), authorities=None)
    with pytest.raises(PermissionDeniedError, match="--replica-key lacks the admin role"):
        await asked.check_admin_key()
    await asked.close()


def test_what_the_primary_refuses_is_refused_here_in_its_words(
    here: Client, there: Client, folders: list[Path], tmp_path: Path
) -> None:
    def refusal(client: Client, act: Callable[[Client], object]) -> tuple[object, ...]:
        with pytest.raises(LoramuxError) as caught:
            act(client)
        error = caught.value
        return type(error), error.reason, error.field, str(error)

    there.adapters.upload("bot", folders[0])
    (tmp_path / "bad.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    acts: list[Callable[[Client], object]] = [
        lambda client: client.adapters.set_alias("bot", "stable", version=7),
        lambda client: client.adapters.set_alias("bot", "latest", version=1),
        lambda client: client.adapters.delete("nothing"),
        lambda client: client.adapters.upload("bad", tmp_path / "bad.safetensors"),
        lambda client: client.adapters.import_from("bot", "s3://bucket/bot"),
        lambda client: client.adapters.upload("bot", folders[1], must_not_exist=True),
    ]
    for act in acts:
        assert refusal(here, act) == refusal(there, act)


def test_it_serves_while_the_primary_is_away_and_catches_up(
    here: Client, there: Client, primary: RunningServer, replica: RunningServer, folders: list[Path]
) -> None:
    for name in ("one", "two"):
        there.adapters.upload(name, folders[0])
    assert same(here, there)
    up = f'loramux_primary_up{{target="{primary.target}"}}'
    assert replica.metrics()[up] == 1
    primary.kill()
    assert here.generate("hello", adapter="one", max_tokens=1).adapter is not None
    with pytest.raises(UnavailableError, match=r"^the primary does not answer$"):
        here.adapters.delete("one")
    assert eventually(lambda: replica.metrics()[up] == 0)
    primary.start()
    # Something that no change is told of: the replica is away.
    replica.stop()
    there.adapters.delete("one")
    there.adapters.upload("two", folders[1])
    replica.start()
    with replica.client(key=key_of(primary, "admin")) as again:
        assert [a.reference for a in again.adapters.list(all_versions=True)] == ["two:2", "two:1"]
        assert state(again) == state(there)
        assert again.info().lineage == there.info().lineage != ""


class Reported:
    """A primary of which a test says what it has."""

    target = "told:1"

    def __init__(self) -> None:
        self.packages: dict[str, bytes] = {}
        """By digest."""
        self.adapters: dict[str, list[Adapter]] = {}
        self.splits: dict[str, Split] = {}
        self.mark = "first"
        self.before_fetch: Callable[[Adapter], object] = lambda adapter: None

    def have(self, name: str, number: int, **fields: Any) -> None:
        data = small_package(number)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        versions = self.adapters.setdefault(name, [])
        versions.append(
            replace(
                wire.adapter(adapters_pb2.Adapter(
                    name=name, tenant="public", digest=digest, version=len(versions) + 1,
                    source=adapters_pb2.ADAPTER_SOURCE_UPLOAD,
                )),
                **fields,
            )
        )  # fmt: skip
        self.packages[digest] = data

    async def check_admin_key(self) -> None:
        pass

    async def lineage(self) -> str:
        return self.mark

    async def versions(self, name: str = "") -> dict[str, list[Adapter]]:
        return {known: all for known, all in self.adapters.items() if name in ("", known)}

    async def aliases(self, name: str) -> dict[str, Split]:
        return self.splits

    async def fetch(self, adapter: Adapter, staged: Staged) -> None:
        self.before_fetch(adapter)
        staged.write(self.packages[adapter.digest])

    async def changes(self) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""


class Untested:
    """Takes in what fits no base."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def take_copy(self, staged: Staged, copied: Adapter) -> None:
        package = read_package(staged.file, staged.size)
        record = self.registry.publish(copied.name, staged, package)
        self.registry.mirror(replace(record, version=copied.version, expires_at=copied.expires_at))


@pytest.fixture
def reported() -> Reported:
    return Reported()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(tmp_path / "mirrored")) as registry:
        yield registry


@pytest.fixture
def states() -> "asyncio.Queue[bool]":
    return asyncio.Queue()


@pytest.fixture
def mirror(reported: Reported, registry: Registry, states: asyncio.Queue[bool]) -> Mirror:
    return Mirror(reported, Untested(registry), states.put_nowait)  # type: ignore[arg-type]


async def test_what_an_alias_keeps_beyond_its_end_is_copied(
    reported: Reported, registry: Registry, mirror: Mirror
) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    reported.have("bot", 0, expires_at=past, aliases=("stable",))
    reported.have("bot", 1, aliases=("stable",))
    reported.have("bot", 2, expires_at=past)
    reported.splits = {"stable": Split.of({1: 1, 2: 1})}
    reported.before_fetch = lambda _: registry.expire(datetime.datetime.now(datetime.UTC))
    await mirror.catch_up()
    registry.expire(datetime.datetime.now(datetime.UTC))
    assert [(r.version, r.expires_at) for r in registry.versions("bot")] == [(1, past), (2, None)]
    assert registry.aliases.of(("public", "bot")) == reported.splits


async def test_of_a_primary_that_lost_its_store_nothing_comes_and_goes(
    reported: Reported, registry: Registry, mirror: Mirror, states: asyncio.Queue[bool]
) -> None:
    reported.have("bot", 0)
    await mirror.begin()
    reported.adapters.clear()
    reported.mark = "another"
    reported.have("bot", 1)
    reported.have("cat", 1)
    following = asyncio.create_task(mirror.run())
    assert not await states.get()
    following.cancel()
    for act in (mirror.catch_up(), mirror.refresh("bot"), mirror.check_lineage()):
        with pytest.raises(FailedPreconditionError, match="has lost its store") as caught:
            await act
        assert caught.value.reason == "OTHER_LINEAGE"
    assert [(r.name, r.digest) for r in registry.records(all_versions=True)] == [
        ("bot", f"sha256:{hashlib.sha256(small_package(0)).hexdigest()}")
    ]
    reported.mark = "first"  # another replica that has become the primary
    reported.adapters.clear()
    await mirror.catch_up()
    assert registry.names() == []  # all of it was deleted there


async def test_a_store_that_is_full_ends_neither_start_nor_following(
    reported: Reported, registry: Registry, mirror: Mirror, states: asyncio.Queue[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(adapter: Adapter) -> None:
        if adapter.name == "large":
            raise OSError(errno.ENOSPC, "no space")

    reported.have("bot", 0)
    reported.have("large", 1)
    reported.before_fetch = full
    await mirror.begin()
    assert registry.names() == ["bot"]
    with pytest.raises(ResourceExhaustedError, match="the store is full"):
        await mirror.refresh("large")
    # Nor does what nobody expects.
    monkeypatch.setattr(mirror_module, "_FIRST_PAUSE", 0.01)
    asked, reported.versions = reported.versions, _broken  # type: ignore[method-assign]
    following = asyncio.create_task(mirror.run())
    assert not await states.get()
    reported.versions = asked  # type: ignore[method-assign]
    reported.before_fetch = lambda _: None
    while not await states.get():
        pass
    following.cancel()
    assert registry.names() == ["bot", "large"]


async def _broken(name: str = "") -> dict[str, list[Adapter]]:
    raise ValueError("nobody thought of that")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replica-key", "x"], "--replica-key is set; set --replica-of, too"),
        (["--replica-of", "127.0.0.1:1", "--adapters", "."], "--adapters cannot be used with"),
        (["--replica-of", "127.0.0.1:1", "--replica-key", "none"], "none: No such file"),
        (["--replica-of", "db.example:1", "--replica-key", "KEY"], "db.example:1 in plaintext"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    tmp_path: Path, roomy_base: Path, primary: RunningServer, arguments: list[str], says: str
) -> None:
    named = [a.replace("KEY", str(primary.log.parent / "admin.key")) for a in arguments]
    with pytest.raises(AssertionError, match=says):
        RunningServer(tmp_path, roomy_base, *named).start()


async def test_a_server_that_is_named_itself_is_the_primary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "loramux-0")
    for target, is_primary in (
        ("loramux-0.loramux-servers:50051", True), ("LORAMUX-0:50051", True),
        ("loramux-0:50052", False), ("loramux-1.loramux-servers:50051", False),
        ("loramux-01:50051", False), ("x.loramux-0:50051", False),
    ):  # fmt: skip
        settings: dict[str, object] = {"model": "", "listen": "0.0.0.0:50051", "replica_of": target}
        assert (primary_of(make_config(settings)) is None) == is_primary, target


def test_a_store_with_adapters_of_its_own_is_not_emptied(tmp_path: Path) -> None:
    with closing(Registry(tmp_path)) as registry:
        mark_replica(registry, is_replica=True)
        publish(registry, "copied", small_package(0))
        mark_replica(registry, is_replica=True)  # after a restart
        mark_replica(registry, is_replica=False)  # in place of a primary that is lost
        publish(registry, "mine", small_package(1))
        with pytest.raises(
            ConfigError, match="has adapters that were added to this server directly"
        ):
            mark_replica(registry, is_replica=True)
