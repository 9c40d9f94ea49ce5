"""Steps of the wall clock: no request ends early for them, and none lives on."""

import ast
import asyncio
import time
from pathlib import Path

import grpc
import pytest

import loramux_server
from loramux.v1 import generation_pb2
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux_server.transport.rpc import Calls, generic_handler
from loramux_server.transport.slow_readers import SlowReaderGuard
from loramux_server.wire.messages import Token
from tests.server.test_streaming import TOKEN, Served

HOUR = 3600.0


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_deadline_is_kept_whatever_the_wall_clock_says(
    monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    served = Served()
    server = grpc.aio.server()
    service = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
    reader_guard = SlowReaderGuard(30.0, lambda: None)
    handler = generic_handler(service, served.service, Calls(), reader_guard)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    request = generation_pb2.GenerateRequest(
        prompt_token_ids=[5], sampling=generation_pb2.SamplingParams(max_tokens=1000)
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GenerationServiceStub(channel)
        patient = stub.StreamGenerate(request, timeout=HOUR / 2)
        async with asyncio.timeout(60):
            while not served.engine.ids:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.01)
        brief = stub.StreamGenerate(request, timeout=0.6)
        async with asyncio.timeout(60):
            while len(served.engine.ids) < 2 and not brief.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + step)
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # not an hour later
            async with asyncio.timeout(60):
                await brief.read()
        served.engine.report(Token(served.engine.ids[0], TOKEN))
        first = await patient.read()  # nor an hour earlier
        assert isinstance(first, generation_pb2.StreamGenerateResponse)
        assert first.delta.token_ids
        patient.cancel()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await server.stop(None)


ASK_THE_WALL_CLOCK = {
    "access/key_ring.py",  # when a key expires
    "chat/template.py",  # what templates may ask for
    "commands/keys.py",
    "commands/tenants.py",
    "transport/lora_requests.py",  # a metric that is a date
    "metrics/tenants.py",  # since when series are counted
    "metrics/tokens.py",  # the same
    "observe/telemetry.py",  # spans carry dates
    "engine_link/quarantine.py",  # since when something is refused
    "replica/mirror.py",  # what ends at the primary
    "services/adapters/expiry.py",  # the end of a version
    "statuses.py",  # when an adapter was last used
    "store/aliases.py",
    "store/check.py",
    "store/times.py",
    "store/uploads.py",  # the age of files
    "access/key_manager.py",
}
"""Modules that ask for the date, all of them for people or for what outlives a process."""


def test_nothing_but_dates_comes_from_the_wall_clock() -> None:
    root = Path(loramux_server.__file__).parent
    asking = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(_asks_the_wall_clock(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert asking == ASK_THE_WALL_CLOCK


def _asks_the_wall_clock(node: ast.AST) -> bool:
    """Return whether `node` is `time.time`, `datetime.now` or `now_in_utc`, called or passed on."""
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "now_in_utc" for alias in node.names)
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value.attr if isinstance(node.value, ast.Attribute) else None
    owner = node.value.id if isinstance(node.value, ast.Name) else owner
    return (owner, node.attr) in {
        ("time", "time"), ("time", "time_ns"), ("time", "gmtime"), ("time", "localtime"),
        ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
    }  # fmt: skip
