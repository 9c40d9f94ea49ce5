"""Uploads that break and go on, over the real socket."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from loramux import AsyncClient, Client
from loramux.v1.adapters_pb2 import UploadHeader
from loramux.v1.uploads_pb2 import (
    FinishUploadRequest,
    SendChunksRequest,
    StartUploadRequest,
    StartUploadResponse,
)
from loramux.v1.uploads_pb2_grpc import UploadServiceStub
from loramux_adapters import pack
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.wire import refusal

CHUNK = 256 << 10


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Packages of several chunks."""
    folder = tmp_path_factory.mktemp("packages")
    model = tiny_model("llama", vocab_size=259)
    paths = []
    for seed in range(3):
        source = save_adapter(
            model, folder / f"peft{seed}", seed=seed, r=480, target_modules="all-linear"
        )
        paths.append(folder / f"{seed}.safetensors")
        with paths[-1].open("wb") as output:
            pack(source, output)
        assert paths[-1].stat().st_size > 3 * CHUNK
    return paths


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, roomy_base: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with RunningServer(folder, roomy_base, "--drain-timeout", "0.5") as server:
        server.stay_at_address()  # so that a client finds it again after a restart
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client
        for adapter in client.adapters.list():
            client.adapters.delete(adapter.name)


@pytest.fixture
def service(server: RunningServer) -> Iterator[UploadServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield UploadServiceStub(channel)


def start(service: UploadServiceStub, name: str, data: bytes) -> StartUploadResponse:
    sha256 = hashlib.sha256(data).hexdigest()
    header = UploadHeader(name=name, size_bytes=len(data), sha256=sha256)
    return service.StartUpload(StartUploadRequest(header=header))


def pieces(upload_id: str, data: bytes, begin: int, end: int) -> Iterator[SendChunksRequest]:
    for offset in range(begin, end, CHUNK):
        chunk = data[offset : min(end, offset + CHUNK)]
        yield SendChunksRequest(upload_id=upload_id, offset=offset, chunk=chunk)


def staged(server: RunningServer) -> list[Path]:
    return list((server.log.parent / "store" / "staging").iterdir())


def test_an_upload_goes_on_after_its_stream_broke(
    server: RunningServer, client: Client, service: UploadServiceStub, packages: list[Path]
) -> None:
    data = packages[0].read_bytes()
    begun = start(service, "broken", data)
    assert begun.committed_bytes == 0
    never = threading.Event()

    def half() -> Iterator[SendChunksRequest]:
        yield from pieces(begun.upload_id, data, 0, 2 * CHUNK)
        never.wait()

    call = service.SendChunks.future(half())
    assert eventually(lambda: start(service, "broken", data).committed_bytes == 2 * CHUNK)
    call.cancel()
    never.set()
    again = start(service, "broken", data)
    assert (again.upload_id, again.committed_bytes) == (begun.upload_id, 2 * CHUNK)
    done = service.SendChunks(pieces(begun.upload_id, data, 2 * CHUNK, len(data)))
    assert done.committed_bytes == len(data)
    first, second = (
        service.FinishUpload(FinishUploadRequest(upload_id=begun.upload_id)) for _ in range(2)
    )
    assert first == second
    assert (first.adapter.name, first.adapter.version) == ("broken", 1)
    assert client.generate("hello", adapter="broken", max_tokens=1).adapter is not None
    assert staged(server) == []


@pytest.mark.parametrize("end", [RunningServer.kill, RunningServer.stop], ids=["kill", "drain"])
def test_an_upload_survives_the_end_of_the_server(
    server: RunningServer,
    client: Client,
    packages: list[Path],
    end: Callable[[RunningServer], object],
) -> None:
    sent: list[int] = []

    def progress(done: int, total: int) -> None:
        sent.append(done)
        if len(sent) == 2:
            end(server)
            server.start()

    adapter = client.adapters.upload("hardy", packages[0], progress=progress)
    size = packages[0].stat().st_size
    assert adapter.digest == f"sha256:{hashlib.sha256(packages[0].read_bytes()).hexdigest()}"
    assert sent[-1] == size
    assert client.generate("hello", adapter="hardy", max_tokens=1).adapter is not None
    assert staged(server) == []


async def test_the_asynchronous_client_goes_on_too(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    sent: list[int] = []

    def progress(done: int, total: int) -> None:
        sent.append(done)
        if len(sent) == 2:
            server.kill()
            server.start()

    async with AsyncClient(server.target) as aio:
        adapter = await aio.adapters.upload("patient", packages[1], progress=progress)
        assert await aio.adapters.get("patient") == adapter
    assert sent[-1] == packages[1].stat().st_size


def test_content_that_is_here_is_not_sent_again(
    client: Client, service: UploadServiceStub, packages: list[Path]
) -> None:
    first = client.adapters.upload("one", packages[0])
    steps: list[tuple[int, int]] = []
    second = client.adapters.upload("two", packages[0], progress=lambda *s: steps.append(s))
    assert (second.digest, second.version) == (first.digest, 1)
    assert steps == [(first.size_bytes, first.size_bytes)]
    begun = start(service, "one", packages[0].read_bytes())
    assert begun.HasField("adapter")
    assert (begun.already_existed, begun.adapter.version) == (True, 1)
    # One tenant does not learn what another has.
    assert not start(service, "team/one", packages[0].read_bytes()).HasField("adapter")


def test_many_who_send_the_same_make_one_version(client: Client, packages: list[Path]) -> None:
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(client.adapters.upload("same", packages[2])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [adapter.version for adapter in made] == [1] * 6
    assert len(client.adapters.list(all_versions=True)) == 1


def test_messages_that_make_no_sense_are_refused(
    server: RunningServer, service: UploadServiceStub, packages: list[Path]
) -> None:
    data = packages[0].read_bytes()
    begun = start(service, "odd", data)
    known = begun.upload_id
    for messages, code, reason, field in [
        (pieces("nothing", data, 0, CHUNK), "NOT_FOUND", "UPLOAD_NOT_FOUND", "upload_id"),
        (pieces(known, data, CHUNK, 2 * CHUNK), "OUT_OF_RANGE", "UPLOAD_PROTOCOL", "offset"),
        (iter([]), "INVALID_ARGUMENT", "UPLOAD_PROTOCOL", "chunk"),
        *(
            (
                iter([SendChunksRequest(upload_id=known, offset=offset, chunk=bytes(size))]),
                "INVALID_ARGUMENT", "UPLOAD_PROTOCOL", wrong,
            )
            for offset, size, wrong in [
                (-1, CHUNK, "offset"), (len(data), CHUNK, "offset"), (0, 100, "chunk"),
                (0, 0, "chunk"), (0, (1 << 20) + 1, "chunk"),
            ]
        ),
    ]:  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            service.SendChunks(messages)
        refused = refusal(caught.value)
        assert (refused.code.name, refused.reason, refused.field) == (code, reason, field)
    for upload_id, code in ((known, "INVALID_ARGUMENT"), ("nothing", "NOT_FOUND")):
        with pytest.raises(grpc.RpcError) as caught:
            service.FinishUpload(FinishUploadRequest(upload_id=upload_id))
        assert refusal(caught.value).code.name == code
    # Bytes that are not those declared end the upload.
    service.SendChunks(pieces(known, bytes(len(data)), 0, len(data)))
    with pytest.raises(grpc.RpcError) as caught:
        service.FinishUpload(FinishUploadRequest(upload_id=known))
    assert refusal(caught.value).reason == "DIGEST_MISMATCH"
    assert not [path for path in staged(server) if path.stem == known]


def test_the_command_line_uploads(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "loramux.cli", "push", str(packages[0]), "--name", "pushed",
            "--server", server.target,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == f"pushed:1 {client.adapters.get('pushed').digest}\n"


def test_an_upload_waits_for_an_engine_that_died(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    before = server.metrics()["loramux_engine_starts_total"]
    os.kill(server.engine_pid, signal.SIGKILL)

    def is_noticed() -> bool:
        metrics = server.metrics()
        return not metrics["loramux_engine_up"] or metrics["loramux_engine_starts_total"] > before

    # An upload that is tried on the one that dies is not one that waits.
    assert eventually(is_noticed)
    assert client.adapters.upload("waits", packages[1]).name == "waits"
    assert client.generate("hello", adapter="waits", max_tokens=1).adapter is not None
