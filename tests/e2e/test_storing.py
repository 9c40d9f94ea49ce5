"""How long versions stay, how much may be stored, and how fast it has to come, over the socket."""

import datetime
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux import AsyncClient, Client
from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.uploads_pb2 import SendChunksRequest, StartUploadRequest
from loramux.v1.uploads_pb2_grpc import UploadServiceStub
from loramux_adapters import pack
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.unread import held
from tests.support.wire import chunks, refusal, upload_header

HOUR = datetime.timedelta(hours=1)
SECOND = datetime.timedelta(seconds=1)
CHUNK = 64 << 10


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Packages of equal size, two of which fit the quota of a tenant."""
    folder = tmp_path_factory.mktemp("packages")
    model = tiny_model("llama", vocab_size=259)
    paths = []
    for seed in range(3):
        source = save_adapter(
            model, folder / f"peft{seed}", seed=seed, r=64, target_modules="all-linear"
        )
        paths.append(folder / f"{seed}.safetensors")
        with paths[-1].open("wb") as output:
            pack(source, output)
    assert len({path.stat().st_size for path in paths}) == 1
    assert paths[0].stat().st_size > 2 * CHUNK
    return paths


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, packages: list[Path]
) -> Iterator[RunningServer]:
    quota = packages[0].stat().st_size * 5 // 2
    with RunningServer(
        tmp_path_factory.mktemp("server"), roomy_base, "--max-tenant-bytes", str(quota),
        "--max-tenant-adapters", "2", "--upload-idle-timeout", "2", "--min-upload-rate", "100M",
        "--eviction", "cost", "--max-tenant-share", "0.5",
    ) as server:  # fmt: skip
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client
        for adapter in client.adapters.list():
            client.adapters.delete(adapter.reference.rpartition(":")[0], wait=True)


def loramux(server: RunningServer, *arguments: str) -> Any:
    command = [sys.executable, "-m", "loramux.cli", *arguments, "--server", server.target]
    wide = os.environ | {"COLUMNS": "250"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=wide
    )
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_what_expires_goes_while_requests_go_on(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    begin = datetime.datetime.now(datetime.UTC)
    adapter = client.adapters.upload("brief", packages[0], ttl=HOUR)
    assert adapter.expires_at is not None
    assert begin + HOUR <= adapter.expires_at <= datetime.datetime.now(datetime.UTC) + HOUR
    with held(server.target, max_tokens=200, adapter="brief") as stream:
        watch = client.adapters.watch("brief", include_existing=True, timeout=120)
        assert next(watch).kind == "existing"
        shortened = client.adapters.set_ttl("brief:1", SECOND)
        assert shortened.expires_at is not None
        assert shortened.expires_at < adapter.expires_at
        kinds = [next(change.kind for change in watch if change.kind != "moved") for _ in range(2)]
        assert kinds == ["updated", "deleted"]
        watch.close()  # type: ignore[attr-defined]
        with pytest.raises(NotFoundError, match="not registered"):
            client.generate("hello", adapter="brief")
        stream.read()
    assert len(stream.tokens[0]) == 200


def test_a_time_can_be_changed_and_cleared(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    pushed = loramux(server, "push", str(packages[0]), "-n", "brief", "--ttl", "7d", "--json")
    ends = datetime.datetime.fromisoformat(pushed["expires_at"])
    left = ends - datetime.datetime.now(datetime.UTC)
    assert 7 * 24 * HOUR - HOUR < left < 7 * 24 * HOUR
    assert f"until {ends.astimezone():%Y-%m-%d %H:%M:%S}" in loramux(server, "ls")
    assert loramux(server, "ttl", "brief", "30m", "--json")["expires_at"] < pushed["expires_at"]
    assert loramux(server, "ttl", "brief", "none", "--json")["expires_at"] is None
    assert client.adapters.get("brief").expires_at is None
    # Content that is there stays as long as was said last.
    assert client.adapters.upload("brief", packages[0], ttl=HOUR).expires_at is not None
    again = client.adapters.upload("brief", packages[0])
    assert (again.expires_at, again.version) == (None, pushed["version"])
    for ttl in (datetime.timedelta(0), -HOUR, datetime.timedelta(days=3651)):
        with pytest.raises(InvalidArgumentError, match="expected 1 s to 3,650 days") as caught:
            client.adapters.set_ttl("brief", ttl)
        assert caught.value.field == "ttl"
        with pytest.raises(InvalidArgumentError, match=r"header\.ttl"):
            client.adapters.upload("brief", packages[0], ttl=ttl)
    with pytest.raises(NotFoundError):
        client.adapters.set_ttl("other", HOUR)


async def test_the_asynchronous_client_has_the_same(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    async with AsyncClient(server.target) as aio:
        adapter = await aio.adapters.upload("brief", packages[0], ttl=HOUR)
        assert adapter.expires_at is not None
        assert (await aio.adapters.set_ttl("brief", None)).expires_at is None
        await aio.adapters.set_alias("brief", "stable", version=adapter.version)
        with pytest.raises(FailedPreconditionError, match="move it first"):
            await aio.adapters.delete(adapter.reference, wait=True)
        await aio.adapters.delete("brief", wait=True)


def test_a_delete_that_waits_leaves_no_row(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    client.adapters.upload("one", packages[0])
    client.adapters.upload("team/same", packages[0])
    client.adapters.prefetch("one")
    used = 'loramux_adapter_bytes{tier="device"}'
    before = server.metrics()[used]
    client.adapters.delete("one", wait=True)
    assert server.metrics()[used] == before  # another version has the same content
    figures: list[dict[str, float]] = []

    def delete() -> None:
        client.adapters.delete("team/same", wait=True)
        figures.append(server.metrics())

    deleting = threading.Thread(target=delete)
    with held(server.target, adapter="team/same") as stream:
        deleting.start()
        assert eventually(lambda: not client.adapters.list())
        assert not figures
        stream.read()
    deleting.join(timeout=60)
    (after,) = figures
    for tier in ("device", "host"):
        assert after[f'loramux_adapters_resident{{tier="{tier}"}}'] == 0
        assert after[f'loramux_adapter_bytes{{tier="{tier}"}}'] == 0


def test_no_tenant_stores_more_than_it_may(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    for number in range(2):
        client.adapters.upload("acme/one", packages[number])
    with pytest.raises(ResourceExhaustedError, match=r"tenant 'acme' uses .* bytes") as caught:
        client.adapters.upload("acme/one", packages[2])
    assert (caught.value.reason, caught.value.quota) == ("STORAGE_QUOTA_EXCEEDED", "tenant:acme")
    client.adapters.upload("other/one", packages[2])  # no neighbour notices
    # Nor does a single call get around it, before the first byte.
    with grpc.insecure_channel(server.target) as channel:
        service = AdapterServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            service.UploadAdapter(iter([upload_header("acme/one", packages[2].read_bytes())]))
    found = refusal(raised.value)
    assert (found.code, found.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_QUOTA_EXCEEDED",
    )  # fmt: skip
    assert found.standard["QuotaFailure"].violations[0].subject == "tenant:acme"
    client.adapters.upload("acme/two", packages[0])  # content that is there takes no bytes
    with pytest.raises(ResourceExhaustedError, match="2 of 2 adapters"):
        client.adapters.upload("acme/three", packages[0])
    client.adapters.delete("acme/one:2")
    client.adapters.upload("acme/one", packages[2])


def test_an_upload_that_fails_gives_its_room_back(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    data = bytearray(packages[0].read_bytes())
    data[-4:] = b"\xff" * 4  # a weight that is not a number
    with grpc.insecure_channel(server.target) as channel:
        service = AdapterServiceStub(channel)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as raised:
                service.UploadAdapter(
                    iter([upload_header("bad", bytes(data)), *chunks(bytes(data))])
                )
            assert refusal(raised.value).reason == "ADAPTER_NOT_FINITE"
    for number in range(2):
        client.adapters.upload("good", packages[number])


def test_an_upload_that_is_too_slow_keeps_what_came(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    data = packages[0].read_bytes()
    header = upload_header("slow", data).header

    def pieces(upload_id: str) -> Iterator[SendChunksRequest]:
        for offset in range(0, len(data), CHUNK):
            yield SendChunksRequest(
                upload_id=upload_id, offset=offset, chunk=data[offset : offset + CHUNK]
            )
            time.sleep(1.2)

    with grpc.insecure_channel(server.target) as channel:
        service = UploadServiceStub(channel)
        begun = service.StartUpload(StartUploadRequest(header=header))
        with pytest.raises(grpc.RpcError) as raised:
            service.SendChunks(pieces(begun.upload_id))
        found = refusal(raised.value)
        assert (found.code, found.reason) == (
            grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_TOO_SLOW",
        )  # fmt: skip
        assert service.StartUpload(StartUploadRequest(header=header)).committed_bytes >= CHUNK
    assert client.adapters.upload("slow", packages[0]).version == 1
