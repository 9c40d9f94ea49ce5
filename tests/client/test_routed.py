"""Calls of both clients, among several servers."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from loramux import AsyncClient, Client
from loramux._channel import MAX_ATTEMPTS, RETRY_TOKENS, server_options
from loramux._routing.aio_routed import AioRoutedChannel
from loramux._routing.names import Addresses
from loramux._routing.rendezvous import MIN_BOUND, order
from loramux._routing.routed import PolledState, RoutedChannel
from loramux._routing.router import RoutedCall
from loramux.errors import (
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1 import generation_pb2
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux_server.transport.rpc import status_metadata
from tests.support.certificates import Authority
from tests.support.polling import eventually
from tests.support.small_server import SmallServer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Calls:
    """What both clients do, in the words of the blocking one."""

    def __init__(self, targets: str | list[str], **options: Any) -> None:
        self._client = Client(targets, **options)

    def generate(self, adapter: str | None = None) -> None:
        self._client.generate("hello", adapter=adapter, timeout=60)

    def stream(self, adapter: str | None = None) -> Iterator[int]:
        for chunk in self._client.stream("hello", adapter=adapter, timeout=60):
            yield from chunk.token_ids

    def many(self, number: int, adapter: str | None) -> None:
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(lambda _: self.generate(adapter), range(number)))

    def close_during_calls(self, is_time: Callable[[], bool]) -> list[BaseException | None]:
        """Close when `is_time`; return how a call and a stream of an adapter ended."""
        with ThreadPoolExecutor(2) as pool:
            calls: list[Future[Any]] = [
                pool.submit(self.generate, "a"),
                pool.submit(lambda: list(self.stream("a"))),
            ]
            assert eventually(is_time)
            self.close()
            return [call.exception() for call in calls]

    def info(self) -> None:
        self._client.info()

    def close(self) -> None:
        self._client.close()


class AsyncCalls:
    """The same by the asynchronous one."""

    def __init__(self, targets: str | list[str], **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._opened(targets, options))

    async def _opened(self, targets: str | list[str], options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(targets, **options)

    def generate(self, adapter: str | None = None) -> None:
        self._runner.run(self._generate(adapter))

    async def _generate(self, adapter: str | None) -> None:
        await self._client.generate("hello", adapter=adapter, timeout=60)

    def stream(self, adapter: str | None = None) -> Iterator[int]:
        stream = self._client.stream("hello", adapter=adapter, timeout=60)
        try:
            while (chunk := self._runner.run(self._next(stream))) is not None:
                yield from chunk.token_ids
        finally:
            self._runner.run(stream.aclose())  # type: ignore[attr-defined]

    async def _next(self, stream: AsyncIterator[Any]) -> Any:
        return await anext(stream, None)

    def many(self, number: int, adapter: str | None) -> None:
        async def together() -> None:
            await asyncio.gather(*(self._generate(adapter) for _ in range(number)))

        self._runner.run(together())

    def close_during_calls(self, is_time: Callable[[], bool]) -> list[BaseException | None]:
        async def stream() -> None:
            async for _ in self._client.stream("hello", adapter="a", timeout=60):
                pass

        async def together() -> list[BaseException | None]:
            calls = [asyncio.ensure_future(self._generate("a")), asyncio.ensure_future(stream())]
            assert await asyncio.to_thread(eventually, is_time)
            await self._client.close()
            return await asyncio.gather(*calls, return_exceptions=True)

        return self._runner.run(together())

    def info(self) -> None:
        self._runner.run(self._info())

    async def _info(self) -> None:
        await self._client.info()

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Open = Callable[..., Calls | AsyncCalls]


@pytest.fixture
def servers() -> Iterator[list[SmallServer]]:
    servers = [SmallServer() for _ in range(3)]
    yield servers
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(SmallServer.stop, servers))


@pytest.fixture(params=[Calls, AsyncCalls])
def connect(request: pytest.FixtureRequest, servers: list[SmallServer]) -> Iterator[Open]:
    """Return what opens a client of all servers."""
    with ExitStack() as opened:

        def open_(**options: Any) -> Calls | AsyncCalls:
            targets = [server.target for server in servers]
            client: Calls | AsyncCalls = request.param(targets, **options)
            return opened.enter_context(closing(client))

        yield open_


def ordered(servers: list[SmallServer], adapter: str) -> list[SmallServer]:
    """Return the servers in the order of an adapter."""
    by_target = {server.target: server for server in servers}
    return [by_target[target] for target in order(adapter, tuple(by_target))]


def fails(
    code: grpc.StatusCode, *metadata: tuple[str, str | bytes]
) -> Callable[[grpc.ServicerContext], None]:
    def fail(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata(metadata)
        context.abort(code, "not now")

    return fail


def refuses(reason: str) -> Callable[[grpc.ServicerContext], None]:
    error = ResourceExhaustedError("full", reason=reason, retry_delay=0.1)
    return fails(grpc.StatusCode.RESOURCE_EXHAUSTED, *status_metadata(error))


def test_calls_for_one_adapter_reach_one_server(servers: list[SmallServer], connect: Open) -> None:
    client = connect()
    for number in range(12):
        client.generate(f"adapter-{number}")
        assert list(client.stream(f"adapter-{number}:stable")) == [1, 2]
    for number in range(12):
        home, *others = ordered(servers, f"adapter-{number}")
        assert home.asked[f"adapter-{number}"] == home.asked[f"adapter-{number}:stable"] == 1
        assert not any(server.asked[f"adapter-{number}"] for server in others)


def test_a_hot_adapter_spreads_while_its_calls_are_many(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect()
    first, *others = ordered(servers, "hot")
    streams = [client.stream("hot") for _ in range(24)]
    for server in servers:
        server.gate.clear()
    for stream in streams:
        next(stream)
    assert first.asked["hot"] == 10  # a quarter more than a third
    assert sum(server.asked["hot"] for server in others) == 14
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    for server in servers:
        server.gate.set()
    client.many(MIN_BOUND, "hot")
    assert first.asked["hot"] == 10 + MIN_BOUND


def test_the_base_is_asked_of_all(servers: list[SmallServer], connect: Open) -> None:
    client = connect()
    for _ in range(6):
        client.generate()
    assert [server.asked[""] for server in servers] == [2, 2, 2]


def test_adapters_of_a_server_that_drains_move_and_come_back(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect()
    first, second, third = ordered(servers, "a")
    client.generate("a")
    first.serves(False)

    def lands_on(server: SmallServer) -> bool:
        before = server.asked["a"]
        client.generate("a")
        return server.asked["a"] > before

    assert eventually(lambda: lands_on(second))
    first.serves(True)
    assert eventually(lambda: lands_on(first))
    assert third.asked["a"] == 0


def test_a_call_goes_on_to_the_next_server_where_the_first_fails(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect()
    first, second, third = ordered(servers, "a")
    first.failure = fails(UNAVAILABLE, ("grpc-retry-pushback-ms", "60000"))
    client.generate("a")
    assert (first.asked["a"], second.asked["a"]) == (1, 1)
    assert list(client.stream("a")) == [1, 2]
    assert third.asked["a"] == 0


def test_a_stream_that_has_started_is_not_made_again(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect()
    home = ordered(servers, "a")[0]
    home.gate.clear()
    stream = client.stream("a")
    assert next(stream) == 1
    home.stop()
    with pytest.raises(UnavailableError):
        list(stream)
    assert sum(server.asked["a"] for server in servers) == 1


def test_nothing_is_made_again_where_that_is_not_wanted(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect(retries=False)
    for server in servers:
        server.failure = fails(UNAVAILABLE)
    with pytest.raises(UnavailableError):
        client.generate("a")
    with pytest.raises(UnavailableError):
        list(client.stream("a"))
    assert sum(server.asked["a"] for server in servers) == 2


def test_a_call_for_which_a_server_has_no_room_goes_to_another(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect()
    first, second, third = ordered(servers, "a")
    first.failure = second.failure = refuses("QUEUE_FULL")
    client.generate("a")
    assert third.asked["a"] == 1
    third.failure = refuses("QUEUE_FULL")
    with pytest.raises(ResourceExhaustedError) as caught:
        client.generate("a")
    assert (caught.value.reason, caught.value.retry_delay) == ("QUEUE_FULL", 0.1)


def test_a_quota_is_not_evaded(servers: list[SmallServer], connect: Open) -> None:
    client = connect()
    ordered(servers, "a")[0].failure = refuses("QUOTA_EXCEEDED")
    with pytest.raises(ResourceExhaustedError):
        client.generate("a")
    assert sum(server.asked["a"] for server in servers) == 1


def test_a_call_is_made_only_so_often(servers: list[SmallServer], connect: Open) -> None:
    client = connect()
    for server in servers:
        server.failure = fails(UNAVAILABLE, ("grpc-retry-pushback-ms", "1"))
    with pytest.raises(UnavailableError):
        client.generate("a")
    assert sum(server.asked["a"] for server in servers) == MAX_ATTEMPTS
    assert all(server.asked["a"] for server in servers)


def test_a_crowd_whose_calls_all_fail_adds_a_bounded_load(
    servers: list[SmallServer], connect: Open
) -> None:
    client = connect()
    for server in servers:
        server.failure = fails(UNAVAILABLE, ("grpc-retry-pushback-ms", "1"))
    for _ in range(120):
        with pytest.raises(UnavailableError):
            client.generate("a")
    again = sum(server.asked["a"] for server in servers) - 120
    assert 0 < again <= RETRY_TOKENS


def test_a_call_that_waits_for_its_next_attempt_fails_as_before_when_the_client_ends(
    servers: list[SmallServer], connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float | None] = []
    failed = RoutedCall.failed

    def noted(routed_call: RoutedCall[Any], error: grpc.RpcError) -> float | None:
        delays.append(failed(routed_call, error))
        return delays[-1]

    monkeypatch.setattr(RoutedCall, "failed", noted)
    client = connect()
    for server in servers:
        server.failure = fails(UNAVAILABLE, ("grpc-retry-pushback-ms", "50000"))
    ended = client.close_during_calls(lambda: delays.count(50.0) == 2)
    assert [str(error) for error in ended] == ["not now"] * 2
    assert all(isinstance(error, UnavailableError) for error in ended)
    assert sum(server.asked["a"] for server in servers) == len(delays)  # and none after that


def test_the_state_of_a_channel_can_be_asked_for(servers: list[SmallServer]) -> None:
    with grpc.insecure_channel(servers[0].target) as channel:
        state = PolledState(channel)
        assert eventually(lambda: state.now() is grpc.ChannelConnectivity.READY)
    assert state.now() is grpc.ChannelConnectivity.SHUTDOWN


FORKED = """
import os, sys
from loramux import Client

client = Client(sys.argv[1:])
client.generate("hello", adapter="a", timeout=60)
child = os.fork()
if not child:
    with Client(sys.argv[1:]) as other:
        other.generate("hello", adapter="b", timeout=60)
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
client.generate("hello", adapter="a", timeout=60)
client.close()
sys.exit(code)
"""


def test_a_process_with_a_client_may_fork_one_that_has_its_own(servers: list[SmallServer]) -> None:
    targets = [server.target for server in servers]
    for _ in range(3):
        subprocess.run([sys.executable, "-c", FORKED, *targets], check=True, timeout=100)
    assert sum(server.asked["b"] for server in servers) == 3


def test_servers_take_turns_where_that_is_wanted(servers: list[SmallServer], connect: Open) -> None:
    client = connect(routing="round_robin")
    assert eventually(lambda: client.generate("a") or all(s.asked["a"] for s in servers))


def test_other_calls_go_to_whoever_is_there(servers: list[SmallServer], connect: Open) -> None:
    client = connect()
    assert eventually(lambda: client.info() or all(server.others for server in servers))


def test_a_routing_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'sticky'; expected adapter or round_robin"):
        Client("localhost:1", routing="sticky")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_failing", [False, True])
def test_a_call_is_one_span_wherever_it_went(
    servers: list[SmallServer], connect: Open, is_failing: bool
) -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    client = connect(tracer_provider=provider)
    for server in ordered(servers, "a")[: 3 if is_failing else 1]:
        server.failure = refuses("QUEUE_FULL")
    for call in (lambda: client.generate("a"), lambda: list(client.stream("a"))):
        try:
            call()
        except LoramuxError:
            assert is_failing
    codes = [
        dict(span.attributes or {})["rpc.response.status_code"]
        for span in kept.get_finished_spans()
    ]
    assert codes == ["RESOURCE_EXHAUSTED" if is_failing else "OK"] * 2


@pytest.mark.parametrize("made", [Calls, AsyncCalls])
def test_servers_behind_a_name_show_a_certificate_of_the_name(made: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", host="localhost")
    pair = (key.read_bytes(), certificate.read_bytes())
    server = SmallServer(grpc.ssl_server_credentials([pair]))
    with closing(made(f"dns:///localhost:{server.port}", tls=authority.path)) as client:
        client.generate("a")
        assert list(client.stream("a")) == [1, 2]
        client.info()
    # By its address, which the certificate lacks, nobody is to be trusted.
    by_address = [server.target, server.target.replace("127.0.0.1", "127.0.0.2")]
    with (
        closing(made(by_address, tls=authority.path, retries=False)) as client,
        pytest.raises(UnavailableError),
    ):
        client.generate("a")
    assert (server.asked["a"], server.others) == (2, 1)
    server.stop()


def test_a_host_that_needs_no_proxy_by_its_name_needs_none_by_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost")
    server = SmallServer()
    settings = server_options(f"dns:///localhost:{server.port}", retries=True)
    with grpc.insecure_channel(server.target, settings) as channel:
        request = generation_pb2.GenerateRequest(adapter="a", prompt="hello")
        GenerationServiceStub(channel).Generate(request, timeout=60)
    server.stop()
    assert server.asked["a"] == 1


class Renamed(Addresses):
    """Whose servers change, and are found by lookup."""

    are_found = True

    def become(self, *servers: SmallServer) -> None:
        self.known = tuple(server.target for server in servers)


async def test_servers_behind_a_name_come_and_go(servers: list[SmallServer]) -> None:
    first, second, third = ordered(servers, "a")
    request = generation_pb2.GenerateRequest(adapter="a", prompt="hello")
    settings = server_options(first.target, retries=True)
    known, aio_known = Renamed(()), Renamed(())
    with grpc.insecure_channel(third.target) as shared:
        async with grpc.aio.insecure_channel(third.target) as aio_shared:
            channel = RoutedChannel(
                shared, lambda server: grpc.insecure_channel(server, settings), known,
                by_adapter=True, retries=True,
            )  # fmt: skip
            aio_channel = AioRoutedChannel(
                aio_shared, lambda server: grpc.aio.insecure_channel(server, settings), aio_known,
                by_adapter=True, retries=True,
            )  # fmt: skip
            stub = GenerationServiceStub(cast(grpc.Channel, channel))
            aio_stub = GenerationServiceStub(cast(grpc.aio.Channel, aio_channel))

            async def asked(*there: SmallServer) -> list[int]:
                """Return where two calls went, one of each kind, when these are the servers."""
                known.become(*there)
                aio_known.become(*there)
                before = [server.asked["a"] for server in servers_ordered]
                await asyncio.to_thread(stub.Generate, request, timeout=60, metadata=())
                await aio_stub.Generate(request, timeout=60, metadata=())
                return [
                    server.asked["a"] - count
                    for server, count in zip(servers_ordered, before, strict=True)
                ]

            servers_ordered = [first, second, third]
            assert await asked() == [0, 0, 2]  # over the channel that is there in any case
            assert await asked(second) == [0, 2, 0]
            assert await asked(second, third) == [0, 2, 0]
            assert await asked(third) == [0, 0, 2]
            first.stop()
            assert await asked(first) == [0, 0, 2]  # likewise, for nobody is where the name points
            await aio_channel.close()
            channel.close()
