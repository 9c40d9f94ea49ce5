"""How a client shows its key, and to whom."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux import AsyncClient, Client
from loramux.cli.app import app
from loramux.errors import InvalidArgumentError
from loramux.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

KEY = "lmx_abc_secret"
MADE: list[Callable[..., Any]] = [Client, AsyncClient]


class Server(
    server_pb2_grpc.ServerServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
    adapters_pb2_grpc.AdapterServiceServicer,
):
    """Notes who calls."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.target = ""

    def GetServerInfo(self, request: Any, context: Any) -> server_pb2.GetServerInfoResponse:
        self._note(context)
        return server_pb2.GetServerInfoResponse()

    def StreamGenerate(
        self, request: Any, context: Any
    ) -> Iterator[generation_pb2.StreamGenerateResponse]:
        self._note(context)
        yield generation_pb2.StreamGenerateResponse()

    def ListAdapters(self, request: Any, context: Any) -> adapters_pb2.ListAdaptersResponse:
        self._note(context)
        return adapters_pb2.ListAdaptersResponse()

    def _note(self, context: Any) -> None:
        shown = dict(context.invocation_metadata()).get("authorization", "")
        self.shown.append(shown)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()  # type: ignore[abstract]  # the rest is not called
    with ThreadPoolExecutor(2) as threads:
        listening = grpc.server(threads)
        server_pb2_grpc.add_ServerServiceServicer_to_server(server, listening)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(server, listening)
        adapters_pb2_grpc.add_AdapterServiceServicer_to_server(server, listening)
        server.target = f"127.0.0.1:{listening.add_insecure_port('127.0.0.1:0')}"
        listening.start()
        yield server
        listening.stop(None).wait()


def test_every_call_shows_the_key(server: Server) -> None:
    with Client(server.target, key=KEY) as client:
        client.info()
        list(client.stream("a"))
        client.adapters.list()
    assert server.shown == [f"Bearer {KEY}"] * 3


async def test_every_call_of_the_asynchronous_client_shows_it_too(server: Server) -> None:
    async with AsyncClient(server.target, key=KEY) as client:
        await client.info()
        assert [chunk async for chunk in client.stream("a")]
        await client.adapters.list()
    assert server.shown == [f"Bearer {KEY}"] * 3


def test_the_key_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAMUX_API_KEY", KEY)
    for key in (None, "", "lmx_other"):
        with Client(server.target, key=key) as client:
            client.info()
    assert server.shown == [f"Bearer {KEY}", "", "Bearer lmx_other"]


def test_the_command_line_takes_the_key_from_a_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORAMUX_API_KEY", "another")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    with pytest.raises(SystemExit):
        app(["--key-file", str(file), "ls", "--server", server.target])
    assert server.shown == [f"Bearer {KEY}"]


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("target", ["models.example.org:443", "10.0.0.1:1", "dns:///host:1"])
async def test_a_key_goes_to_another_machine_only_through_tls(
    made: Callable[..., Any], target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="plaintext") as caught:
        made(target, key=KEY)
    assert KEY not in str(caught.value)
    made(target, key=KEY, tls=False)
    made(target, key=KEY, tls=True)
    made(target)
    with pytest.raises(FileNotFoundError):
        made(target, tls=tmp_path / "nowhere.pem")
    monkeypatch.setenv("LORAMUX_CA", str(tmp_path / "nowhere.pem"))
    with pytest.raises(FileNotFoundError):
        made(target, key=KEY)


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:///run/x"])
def test_a_key_goes_to_this_machine_as_it_is(target: str) -> None:
    Client(target, key=KEY).close()


@pytest.mark.parametrize("key", ["lmx_a\n", "lmx a", "lmx_\u0430", "\x00"])
def test_what_is_no_key_is_not_sent(key: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Client("localhost:1", key=key)
    assert caught.value.field == "key"
    assert "lmx" not in str(caught.value)
