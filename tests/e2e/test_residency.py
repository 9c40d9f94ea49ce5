"""What goes on with adapters, and where they are to be, over the real socket."""

import datetime
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux import AsyncClient, Client
from loramux.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux_server.models.decoder_model import prepare
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.unread import held

ROWS = 32
"""Rank rows that the adapter memory of the server holds."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT folders that take 8 rows each, but for a wide one and one that takes all."""
    folder = tmp_path_factory.mktemp("peft")
    model = tiny_model("llama", vocab_size=259)
    ranks = {"one": 4, "two": 4, "three": 4, "wide": 24, "full": ROWS}
    return {
        name: save_adapter(model, folder / name, seed=seed, r=rank, target_modules=["q_proj"])
        for seed, (name, rank) in enumerate(ranks.items())
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, roomy_base: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    groups = prepare(tiny_model("llama", vocab_size=259)).groups
    row_bytes = 4 * sum(group.shape.row_weights for group in groups)
    with RunningServer(
        folder, roomy_base, "--adapter-memory", str(ROWS * row_bytes), "--drain-timeout", "100"
    ) as server:
        yield server


@pytest.fixture
def client(server: RunningServer, folders: dict[str, Path]) -> Iterator[Client]:
    with server.client() as client:
        for name, folder in folders.items():
            client.adapters.upload(name, folder)
        yield client
    with server.client() as client:
        for adapter in client.adapters.list():
            client.adapters.delete(adapter.reference.rpartition(":")[0])


def tiers(client: Client) -> dict[str, str]:
    return {adapter.name: adapter.tier for adapter in client.adapters.list()}


def loramux(server: RunningServer, *arguments: str) -> str:
    command = [sys.executable, "-m", "loramux.cli", *arguments, "--server", server.target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_what_is_used_is_counted(server: RunningServer, client: Client) -> None:
    before = client.adapters.prefetch("one").status
    begin = datetime.datetime.now(datetime.UTC)
    for _ in range(3):
        client.generate("hello", adapter="one", max_tokens=1)
    after = client.adapters.get("one").status
    assert (after.requests - before.requests, after.hits - before.hits) == (3, 3)
    assert (after.loads, after.calls, after.is_loading) == (before.loads, 0, False)
    assert after.loads >= 1
    assert after.last_used_at is not None
    assert begin <= after.last_used_at <= datetime.datetime.now(datetime.UTC)
    assert after.memory_bytes == client.adapters.get("two").status.memory_bytes > 0
    with held(server.target, adapter="one"):
        assert client.adapters.get("one").status.calls == 1
    assert eventually(lambda: client.adapters.get("one").status.calls == 0)


def test_lists_are_of_what_is_asked_for(client: Client, folders: dict[str, Path]) -> None:
    client.adapters.upload("team/other", folders["one"])
    client.adapters.upload("one", folders["two"])
    client.adapters.prefetch("wide")

    def names(**options: Any) -> list[str]:
        return [adapter.reference for adapter in client.adapters.list(**options)]

    newest = client.adapters.get("one").version
    assert names(tenant="team") == ["team/other:1"]
    assert names(name_prefix="on") == [f"one:{newest}"]
    assert names(name_prefix="on", all_versions=True) == [f"one:{newest}", f"one:{newest - 1}"]
    assert names(source="directory") == []
    on_device = client.adapters.list(tier="device")
    assert "wide" in [adapter.name for adapter in on_device]
    assert {adapter.tier for adapter in on_device} == {"device"}
    with pytest.raises(InvalidArgumentError, match="expected one of stored, host, device"):
        client.adapters.list(tier="moon")
    client.adapters.delete("team/other")


def test_what_is_pinned_stays_while_others_come_and_go(client: Client) -> None:
    pinned = client.adapters.pin("one")
    assert (pinned.is_pinned, pinned.tier) == (True, "device")
    for name in ("two", "wide", "three", "wide", "two"):
        assert client.adapters.prefetch(name).tier == "device"
        assert tiers(client)["one"] == "device"
    assert not client.adapters.unpin("one").is_pinned
    assert client.adapters.prefetch("full").tier == "device"
    assert tiers(client)["one"] == "host"


def test_more_than_fits_is_not_pinned_and_nobody_waits_for_ever(client: Client) -> None:
    client.adapters.pin("one")
    client.adapters.pin("two")
    with pytest.raises(ResourceExhaustedError, match="16 are already pinned") as caught:
        client.adapters.pin("wide")
    assert (caught.value.reason, caught.value.field) == ("PINS_FULL", "name")
    assert not client.adapters.get("wide").is_pinned
    # It finds no room but that of what is pinned, which comes back afterwards.
    answer = client.generate("hello", adapter="wide", max_tokens=2, timeout=60)
    assert answer.adapter is not None
    assert eventually(
        lambda: {name for name, tier in tiers(client).items() if tier == "device"} >= {"one", "two"}
    )


def test_pins_survive_a_kill_and_end_with_their_version(
    server: RunningServer, client: Client, folders: dict[str, Path]
) -> None:
    client.adapters.pin("one")
    version = client.adapters.get("one").reference
    client.adapters.upload("one", folders["two"])
    assert client.adapters.get(version).is_pinned
    assert not client.adapters.get("one").is_pinned
    server.kill()
    server.start()
    with server.client() as again:
        assert eventually(lambda: again.adapters.get(version).tier == "device")
        assert again.adapters.get(version).is_pinned
        again.adapters.delete("one")
        again.adapters.prefetch("full")
        on_device = [name for name, tier in tiers(again).items() if tier == "device"]
        assert on_device == ["full"]


def test_what_is_not_there_cannot_be_pinned_loaded_or_sent(client: Client, tmp_path: Path) -> None:
    for call in (
        client.adapters.pin,
        client.adapters.unpin,
        client.adapters.prefetch,
        lambda name: client.adapters.download(name, tmp_path / "x"),
    ):
        with pytest.raises(NotFoundError) as caught:
            call("nothing")
        assert caught.value.field == "name"
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_what_was_uploaded(
    server: RunningServer, client: Client, tmp_path: Path
) -> None:
    target = tmp_path / "wide.safetensors"
    steps: list[tuple[int, int]] = []
    adapter = client.adapters.download("wide:latest", target, progress=lambda *s: steps.append(s))
    assert adapter.digest == f"sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}"
    assert steps[-1] == (adapter.size_bytes, adapter.size_bytes)
    # What comes back as it was is the same version.
    assert client.adapters.upload("wide", target).version == adapter.version
    said = loramux(server, "pull", "wide", "-o", str(tmp_path / "again"))
    assert said == f"{tmp_path / 'again'} {adapter.digest}\n"
    assert (tmp_path / "again").read_bytes() == target.read_bytes()
    blob = server.log.parent / "store" / "blobs" / adapter.digest[7:9] / adapter.digest[7:]
    blob.write_bytes(b"damaged")
    with pytest.raises(DataLossError):
        client.adapters.download("wide", tmp_path / "damaged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "wide.safetensors"]


def test_a_delete_can_wait_for_the_last_request(server: RunningServer, client: Client) -> None:
    def is_gone() -> bool:
        return "one" not in tiers(client)

    deleting = threading.Thread(target=lambda: client.adapters.delete("one", wait=True))
    with held(server.target, max_tokens=200, adapter="one") as stream:
        deleting.start()
        assert eventually(is_gone)  # at once, for others
        assert deleting.is_alive()
        stream.read()
    deleting.join(timeout=60)
    assert not deleting.is_alive()
    assert len(stream.tokens[0]) == 200


def test_a_watcher_is_notified_of_everything(client: Client, folders: dict[str, Path]) -> None:
    reported: list[tuple[str, str]] = []
    is_over = threading.Event()

    def watch() -> None:
        for change in client.adapters.watch("watched", include_existing=True):
            reported.append((change.kind, change.adapter.reference))
            if change.kind == "deleted":
                break
        is_over.set()

    first = client.adapters.upload("watched", folders["one"]).version
    threading.Thread(target=watch, daemon=True).start()
    assert eventually(lambda: reported == [("existing", f"watched:{first}")])
    client.adapters.upload("watched", folders["two"])
    client.adapters.set_alias("watched", "stable", version=first + 1)
    client.adapters.pin(f"watched:{first}")
    client.adapters.unpin(f"watched:{first}")
    client.adapters.delete_alias("watched", "stable")
    client.adapters.delete(f"watched:{first + 1}")
    assert is_over.wait(60)
    kinds = [change for change in reported if change[0] != "moved"]
    assert kinds == [
        ("existing", f"watched:{first}"), ("registered", f"watched:{first + 1}"),
        ("updated", f"watched:{first + 1}"), ("updated", f"watched:{first}"),
        ("updated", f"watched:{first}"), ("updated", f"watched:{first + 1}"),
        ("deleted", f"watched:{first + 1}"),
    ]  # fmt: skip


def test_a_watcher_sees_weights_move(client: Client) -> None:
    for name in ("two", "three", "wide"):
        client.adapters.prefetch(name)
    seen: list[str] = []
    watching = client.adapters.watch(include_existing=True)
    for change in watching:
        if change.kind == "existing" and change.adapter.name == "wide":
            break
    threading.Thread(target=lambda: client.adapters.prefetch("one")).start()
    for change in watching:
        if change.adapter.name == "one":
            seen.append(change.adapter.tier)
            if change.adapter.tier == "device" and not change.adapter.status.is_loading:
                break
    watching.close()  # type: ignore[attr-defined]
    assert seen[-1] == "device"


async def test_the_asynchronous_client_does_the_same(
    server: RunningServer, client: Client, tmp_path: Path
) -> None:
    async with AsyncClient(server.target) as aio:
        assert (await aio.adapters.pin("one")).is_pinned
        assert (await aio.adapters.prefetch("two")).tier == "device"
        assert not (await aio.adapters.unpin("one")).is_pinned
        assert [a.name for a in await aio.adapters.list(name_prefix="t")] == ["three", "two"]
        adapter = await aio.adapters.download("one", tmp_path / "one")
        assert (tmp_path / "one").stat().st_size == adapter.size_bytes
        kinds = []
        async for change in aio.adapters.watch("one", include_existing=True):
            kinds.append(change.kind)
            if change.kind == "existing":
                await aio.adapters.delete("one", wait=True)
            if change.kind == "deleted":
                break
        assert kinds[0] == "existing"
        assert kinds[-1] == "deleted"


def test_the_command_line_shows_and_steers(server: RunningServer, client: Client) -> None:
    reference = client.adapters.get("one").reference
    assert loramux(server, "pin", "one") == f"{reference} device, pinned\n"
    assert loramux(server, "unpin", "one") == f"{reference} device\n"
    assert loramux(server, "prefetch", "wide").endswith(" device\n")
    listed = json.loads(loramux(server, "ls", "--prefix", "one", "--json"))
    assert [adapter["name"] for adapter in listed] == ["one"]
    assert listed[0]["status"]["loads"] >= 1
    for option, heading in (("--all-versions", "targets"), ("--usage", "last used")):
        assert heading in loramux(server, "ls", option)
    loramux(server, "rm", "one", "--wait")
    assert "one" not in tiers(client)


def test_a_watcher_does_not_hold_up_the_end(server: RunningServer, client: Client) -> None:
    watching = client.adapters.watch(include_existing=True)
    next(watching)
    stopped: list[int] = []
    threading.Thread(target=lambda: stopped.append(server.stop())).start()
    with pytest.raises(UnavailableError, match="watch again"):
        list(watching)
    assert eventually(lambda: stopped == [0])  # long before the drain would have ended it
    server.start()
