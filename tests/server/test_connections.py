"""What the server lets a connection do, tried by hand over a socket."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux._channel import options
from loramux_server.transport.connection_limits import ConnectionLimits
from loramux_server.transport.listener import Listener
from loramux_server.transport.slow_readers import SlowReaderGuard
from tests.support.http2 import (
    ACK,
    DATA,
    GOAWAY,
    PING,
    RST_STREAM,
    SETTINGS,
    Frame,
    RawConnection,
)

WATCH = "/grpc.health.v1.Health/Watch"
"""A call without an end, and after the first message a silent one."""


class Nothing(grpc.aio.ServerInterceptor):
    """Lets all calls pass."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        return await continuation(handler_call_details)


@asynccontextmanager
async def opened(**limits: Any) -> AsyncIterator[str]:
    """Yield the address of a server that answers health checks."""
    nothing: Any = Nothing()
    listener = Listener(
        "127.0.0.1:0", call_log=nothing, gate=nothing,
        reader_guard=SlowReaderGuard(30.0, lambda: None),
        limits=ConnectionLimits(**limits), drain_timeout=1.0,
    )  # fmt: skip
    await listener.open([], None)
    listener.show_health(True)
    try:
        yield listener.address
    finally:
        await listener.close()


async def seen(talk: Callable[[], list[Frame]]) -> list[Frame]:
    """Return what came in a talk with the server, which runs in this thread."""
    async with asyncio.timeout(60):
        return await asyncio.to_thread(talk)


def reason(frames: list[Frame]) -> bytes:
    """Return what the server said last when it closed the connection."""
    return [frame for frame in frames if frame.kind == GOAWAY][-1].payload[8:]


@pytest.mark.parametrize("is_alive", [True, False])
async def test_a_client_that_gives_no_sign_of_life_loses_its_connection(is_alive: bool) -> None:
    """F15."""

    def talk() -> list[Frame]:
        frames: list[Frame] = []
        with RawConnection(target) as connection:
            connection.call(WATCH, b"")
            for frame in connection.frames():
                frames.append(frame)
                num_pings = sum(one.kind == PING for one in frames)
                if frame.kind == PING and is_alive:
                    connection.send(PING, ACK, 0, frame.payload)
                if num_pings == 6:
                    break
        return frames

    async with opened(keepalive=0.1, keepalive_timeout=0.2 if not is_alive else 20.0) as target:
        frames = await seen(talk)
    if is_alive:
        assert not any(frame.kind == GOAWAY for frame in frames)
    else:
        assert b"ping" in reason(frames)


async def test_a_client_that_asks_for_signs_of_life_too_often_is_sent_away() -> None:
    """F16."""

    def talk() -> list[Frame]:
        with RawConnection(target) as connection:
            connection.send_together(PING, [number.to_bytes(8) for number in range(10)])
            return list(connection.frames())

    async with opened() as target:
        assert reason(await seen(talk)) == b"too_many_pings"


async def test_a_client_without_calls_may_ask_now_and_then() -> None:
    def talk() -> list[Frame]:
        found: list[Frame] = []
        with RawConnection(target) as connection:
            frames = connection.frames()
            for number in range(6):
                time.sleep(0.1)
                connection.send(PING, 0, 0, number.to_bytes(8))
                found.append(next(frame for frame in frames if frame.kind in (PING, GOAWAY)))
        return found

    async with opened(min_ping_interval=0.05) as target:
        assert [frame.kind for frame in await seen(talk)] == [PING] * 6


async def test_our_client_does_not() -> None:
    keepalive = dict(options("", retries=True))["grpc.keepalive_time_ms"]
    assert int(keepalive) / 1000 > ConnectionLimits().min_ping_interval


async def test_a_connection_without_calls_is_closed_after_a_while() -> None:
    def talk() -> list[Frame]:
        with RawConnection(target) as connection:
            return list(connection.frames())

    async with opened(max_idle=0.2) as target:
        assert reason(await seen(talk)) == b"connection idle"


async def test_calls_on_an_old_connection_end_well_and_new_ones_take_another() -> None:
    async with opened(max_age=0.2) as target, grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        first = await watch.read()
        await asyncio.sleep(0.5)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert first.status == answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not watch.done()
        watch.cancel()


async def test_calls_that_outlive_the_grace_of_an_old_connection_end_with_it() -> None:
    async with (
        opened(max_age=0.2, max_age_grace=0.2) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with asyncio.timeout(60):
                async for answer in watch:
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_who_connects_and_says_nothing_is_sent_away() -> None:
    """F04."""

    def talk() -> list[Frame]:
        host, port = target.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            while connection.recv(4096):
                pass
        return []

    async with opened(max_handshake=0.3) as target:
        await seen(talk)


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    """F19."""

    def talk() -> list[Frame]:
        with RawConnection(target) as one, RawConnection(target) as other:
            welcome = [next(connection.frames()) for connection in (one, other)]
            with RawConnection(target) as third:
                assert list(third.frames()) == []
        return welcome

    async with opened(max_connections=2) as target:
        assert [frame.kind for frame in await seen(talk)] == [SETTINGS, SETTINGS]


async def test_calls_beyond_the_limit_of_a_connection_are_refused_or_wait() -> None:
    """F18."""

    def talk() -> list[Frame]:
        frames: list[Frame] = []
        with RawConnection(target) as connection:
            streams = [connection.call(WATCH, b"") for _ in range(3)]
            for frame in connection.frames():
                frames.append(frame)
                if streams == sorted({f.stream for f in frames if f.kind in (DATA, RST_STREAM)}):
                    break
        return frames

    async with opened(max_streams=2) as target:
        frames = await seen(talk)
        refused = [frame.stream for frame in frames if frame.kind == RST_STREAM]
        assert refused == [5]
        async with grpc.aio.insecure_channel(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for watch in watches:
                await watch.read()
            check = asyncio.ensure_future(_checked(stub))
            await asyncio.sleep(0.1)
            assert not check.done()
            watches[0].cancel()
            assert (await check).status == health_pb2.HealthCheckResponse.SERVING
            watches[1].cancel()


async def _checked(stub: health_pb2_grpc.HealthStub) -> health_pb2.HealthCheckResponse:
    found: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest())
    return found


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({"compression": grpc.Compression.Gzip}, grpc.StatusCode.UNIMPLEMENTED),
        ({"compression": grpc.Compression.Deflate}, grpc.StatusCode.UNIMPLEMENTED),
        ({"metadata": (("x", "y" * (8 << 10)),)}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["gzip", "deflate", "metadata"],
)
async def test_what_no_call_may_bring_is_refused(
    call: dict[str, Any], code: grpc.StatusCode
) -> None:
    """F05, F08."""
    async with opened() as target, grpc.aio.insecure_channel(target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service="a" * 1000)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(request, timeout=60, **call)
        assert caught.value.code() is code
        assert (await check(health_pb2.HealthCheckRequest(), timeout=60)).status


async def test_a_message_above_the_limit_is_refused() -> None:
    limit = ConnectionLimits().max_message
    async with opened() as target, grpc.aio.insecure_channel(target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for size, code in (
            (limit - 100, grpc.StatusCode.NOT_FOUND),
            (limit, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(health_pb2.HealthCheckRequest(service="a" * size), timeout=60)
            assert caught.value.code() is code
