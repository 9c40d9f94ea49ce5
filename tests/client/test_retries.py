"""Which calls are made again, how soon, and how many at most."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import grpc
import pytest

import loramux.v1
from loramux import Client
from loramux._channel import MAX_ATTEMPTS, RETRY_TOKENS, options
from loramux.errors import LoramuxError, UnavailableError
from loramux.v1 import generation_pb2, server_pb2

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Server:
    """Fails calls as it is told, and counts them."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.failures = 0
        """So many calls fail from now on."""
        self.code = UNAVAILABLE
        self.message = "not now"
        self.pushback: int | None = None
        self._pool = ThreadPoolExecutor(16)
        self._grpc = grpc.server(self._pool)
        self._grpc.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        self.target = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]
        if method == "StreamGenerate":
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(lambda _, context: self._answer(method, context))

    def _answer(self, method: str, context: grpc.ServicerContext) -> bytes:
        self._maybe_fail(method, context)
        response = server_pb2.GetServerInfoResponse(version="1")
        return response.SerializeToString() if method == "GetServerInfo" else b""

    def _stream(self, _: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.attempts.append("StreamGenerate")
        delta = generation_pb2.Completion(token_ids=[1])
        yield generation_pb2.StreamGenerateResponse(delta=delta).SerializeToString()
        context.abort(UNAVAILABLE, "gone")

    def _maybe_fail(self, method: str, context: grpc.ServicerContext) -> None:
        self.attempts.append(method)
        if not self.failures:
            return
        self.failures -= 1
        if self.pushback is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self.pushback)),))
        context.abort(self.code, self.message)

    def stop(self) -> None:
        self._grpc.stop(None).wait()
        self._pool.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def test_a_call_that_changes_nothing_is_made_again(server: Server, client: Client) -> None:
    server.failures, server.pushback = 2, 10
    assert client.info().version == "1"
    assert server.attempts == ["GetServerInfo"] * 3


def test_a_server_that_hangs_up_is_as_good_as_away(server: Server, client: Client) -> None:
    server.failures, server.code, server.message = 1, grpc.StatusCode.CANCELLED, "CANCELLED"
    assert client.info().version == "1"
    server.failures = 1
    with pytest.raises(UnavailableError):
        client.adapters.delete("a")


def test_a_call_is_made_again_only_so_often(server: Server, client: Client) -> None:
    server.failures, server.pushback = 100, 1
    with pytest.raises(UnavailableError):
        client.generate("hello")
    assert server.attempts == ["Generate"] * MAX_ATTEMPTS


def test_a_call_that_changes_something_is_made_once(server: Server, client: Client) -> None:
    server.failures = 1
    with pytest.raises(UnavailableError):
        client.adapters.delete("a")
    assert server.attempts == ["DeleteAdapter"]


def test_what_would_fail_again_is_not_made_again(server: Server, client: Client) -> None:
    server.failures, server.code = 1, grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(LoramuxError):
        client.info()
    assert server.attempts == ["GetServerInfo"]


def test_a_stream_is_not_made_again_after_its_first_token(server: Server, client: Client) -> None:
    stream = client.stream("hello")
    assert next(stream).token_ids == (1,)
    with pytest.raises(UnavailableError):
        next(stream)
    assert server.attempts == ["StreamGenerate"]


def test_no_call_is_made_again_unless_that_is_wanted(server: Server) -> None:
    server.failures = 1
    with Client(server.target, retries=False) as client, pytest.raises(UnavailableError):
        client.info()
    assert server.attempts == ["GetServerInfo"]


def test_a_crowd_whose_calls_all_fail_adds_a_bounded_load(server: Server, client: Client) -> None:
    server.failures, server.pushback = 10_000, 1
    num_calls = 300

    def call(_: int) -> None:
        with pytest.raises(UnavailableError):
            client.info()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(num_calls)))
    again = len(server.attempts) - num_calls
    assert 0 < again <= RETRY_TOKENS


def test_every_method_that_changes_nothing_is_made_again() -> None:
    config = json.loads(str(dict(options("a:1", retries=True))["grpc.service_config"]))
    (repeated,) = config["methodConfig"]
    protos = [
        import_module(f"loramux.v1.{each.name}") for each in iter_modules(loramux.v1.__path__)
    ]
    methods = {
        (service.full_name, method.name)
        for proto in protos if hasattr(proto, "DESCRIPTOR")
        for service in proto.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }  # fmt: skip
    made_again = {(name["service"], name["method"]) for name in repeated["name"]}
    assert made_again < methods
    assert {name for _, name in methods - made_again} == {
        "UploadAdapter", "ImportAdapter", "DeleteAdapter", "SetAdapterTtl", "WatchAdapters",
        "StartUpload", "SendChunks", "FinishUpload", "SetAlias", "DeleteAlias", "RollBackAlias",
        "ClearQuarantined",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "takes_turns"),
    [("host:1", False), ("dns:///host:1", True), (["host:1"], False), (["a:1", "b:1"], True)],
)
def test_whoever_has_several_addresses_takes_turns_and_leaves_out_who_drains(
    target: str | list[str], takes_turns: bool
) -> None:
    config = json.loads(str(dict(options(target, retries=True))["grpc.service_config"]))
    assert ("round_robin" in str(config.get("loadBalancingConfig"))) == takes_turns
    assert ("healthCheckConfig" in config) == takes_turns
