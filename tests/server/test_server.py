"""A whole server in this process, before an engine that has no model: its health and its end."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux_server.config import make_config
from loramux_server.server import Server
from tests.support.fake_server import answer, write_engine

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE = 30.0
COUNT = 40


@contextlib.asynccontextmanager
async def serving(
    folder: Path, patch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    """Yield a server that ends with the block, and a channel to it that does not."""
    state, engine = write_engine(folder)
    patch.setattr(sys, "executable", str(engine))
    config = make_config(
        {
            "model": str(state), "store": str(folder / "store"), "listen": "127.0.0.1:0",
            "metrics": "127.0.0.1:0", "probe_interval": 0.0, **settings,
        }
    )  # fmt: skip
    async with contextlib.AsyncExitStack() as channels, Server(config) as server:
        channel = grpc.aio.insecure_channel(server.grpc_address)
        yield server, await channels.enter_async_context(channel)


async def test_health_is_that_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch) as (server, channel):
        watching: Any = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert (await watching.read()).status == SERVING
        pid = server.engine_pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert (await watching.read()).status == NOT_SERVING
        assert (await watching.read()).status == SERVING
        watching.cancel()


async def test_what_is_under_way_when_the_server_ends_is_answered_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = GenerateRequest(prompt_token_ids=[5], sampling=SamplingParams(max_tokens=COUNT))
    async with serving(tmp_path, monkeypatch, drain_timeout=PATIENCE) as (_, channel):
        stream: Any = GenerationServiceStub(channel).StreamGenerate(request, timeout=PATIENCE)
        responses = aiter(stream)
        first = list((await anext(responses)).delta.token_ids)
        rest = asyncio.ensure_future(tokens_of(responses))
    assert 0 < len(first) < COUNT
    assert (*first, *await rest) == answer([5], COUNT)


async def tokens_of(responses: AsyncIterator[Any]) -> list[int]:
    return [token async for response in responses for token in response.delta.token_ids]
