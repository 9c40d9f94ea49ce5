"""Streams among several servers that are cancelled while they connect."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import grpc
import pytest

from loramux._routing.aio_routed import AioRoutedChannel
from loramux._routing.names import Addresses
from loramux._routing.routed import RoutedChannel
from loramux.v1 import generation_pb2
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from tests.support.small_server import SmallServer

REQUEST = generation_pb2.GenerateRequest(adapter="a", prompt="hello")


@pytest.fixture
def server() -> Iterator[SmallServer]:
    server = SmallServer()
    yield server
    server.stop()


def test_a_stream_that_another_thread_cancels_while_it_connects_ends(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects, may_connect = threading.Event(), threading.Event()
    usual = RoutedChannel._settle

    def settle(channel: RoutedChannel, seconds: float | None) -> None:
        usual(channel, seconds)
        connects.set()
        may_connect.wait(60)

    monkeypatch.setattr(RoutedChannel, "_settle", settle)
    server.gate.clear()
    with grpc.insecure_channel(server.target) as shared, ThreadPoolExecutor(1) as pool:
        channel = RoutedChannel(
            shared, grpc.insecure_channel, Addresses((server.target,)), by_adapter=True,
            retries=True,
        )  # fmt: skip
        stub = GenerationServiceStub(cast(grpc.Channel, channel))
        stream = stub.StreamGenerate(REQUEST, timeout=60, metadata=())
        found = pool.submit(list, stream)
        assert connects.wait(60)
        stream.cancel()
        may_connect.set()
        with pytest.raises(grpc.RpcError) as caught:
            found.result()
        assert cast(grpc.Call, caught.value).code() is grpc.StatusCode.CANCELLED
        (connection,) = channel._router.connections
        assert (connection.num_calls, connection.avoided_until) == (0, 0.0)
        channel.close()


async def test_a_stream_that_another_task_cancels_while_it_connects_ends(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects, may_connect = asyncio.Event(), asyncio.Event()
    usual = AioRoutedChannel._settle

    async def settle(channel: AioRoutedChannel, seconds: float | None) -> None:
        await usual(channel, seconds)
        connects.set()
        await may_connect.wait()

    monkeypatch.setattr(AioRoutedChannel, "_settle", settle)
    server.gate.clear()
    async with grpc.aio.insecure_channel(server.target) as shared:
        channel = AioRoutedChannel(
            shared, grpc.aio.insecure_channel, Addresses((server.target,)), by_adapter=True,
            retries=True,
        )  # fmt: skip
        stub = GenerationServiceStub(cast(grpc.aio.Channel, channel))
        stream = stub.StreamGenerate(REQUEST, timeout=60, metadata=())
        found = asyncio.ensure_future(anext(aiter(stream)))
        await connects.wait()
        stream.cancel()
        may_connect.set()
        with pytest.raises(asyncio.CancelledError):
            await found
        (connection,) = channel._router.connections
        assert connection.num_calls == 0
        await channel.close()
