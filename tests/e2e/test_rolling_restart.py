"""Three servers behind one client, restarted one after the other: no caller notices."""

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from loramux import AsyncClient, Client
from loramux.errors import InvalidArgumentError, UnavailableError
from tests.support.fake_server import FakeServer, answer, answered, asked, write_engine
from tests.support.gateway import RunningGateway
from tests.support.load import Load
from tests.support.polling import eventually

NUM_SERVERS = 3


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[FakeServer]]:
    servers = [
        FakeServer(tmp_path / str(number), step_seconds=0.01) for number in range(NUM_SERVERS)
    ]
    with ExitStack() as running, ThreadPoolExecutor(NUM_SERVERS) as pool:
        list(pool.map(FakeServer.start, servers))
        for server in servers:
            running.push(server)
            server.stay_at_address()
        yield servers


def steps(server: FakeServer) -> float:
    return server.metrics()["loramux_step_seconds_count"]


def test_a_rolling_restart_fails_no_call(servers: list[FakeServer]) -> None:
    targets = [server.target for server in servers]
    with Load(
        lambda: Client(targets), answered, asks=asked, num_threads=6, max_tokens=(2, 20)
    ) as load:
        assert eventually(lambda: all(map(steps, servers)))  # each takes its turn
        for server in servers:
            before = len(load.streams)
            assert server.stop() == 0
            assert eventually(lambda before=before: len(load.streams) > before + 20)  # type: ignore[misc]
            server.start()
            assert eventually(lambda server=server: steps(server) > 0)  # type: ignore[misc]
    assert [stream.error for stream in load.streams if stream.error] == []
    assert all(stream.is_right for stream in load.streams)
    assert len(load.streams) > 60


def test_calls_of_a_gateway_leave_out_who_drains(tmp_path: Path) -> None:
    body = {"model": "", "prompt": [5], "max_tokens": 2, "return_token_ids": True}
    with (
        FakeServer(tmp_path / "0", "--drain-timeout", "600", step_seconds=0.01) as draining,
        FakeServer(tmp_path / "1", step_seconds=0.01) as other,
        RunningGateway(tmp_path, [draining.target, other.target]) as gateway,
        draining.client() as client,
    ):
        body["model"] = client.info().base_model
        both = (draining, other)
        assert eventually(
            lambda: gateway.post("/v1/completions", body).status == 200 and all(map(steps, both))
        )
        stream = client.stream([5], max_tokens=4000)
        next(stream)
        os.kill(draining.pid, signal.SIGTERM)  # which waits for the stream
        for _ in range(10):
            found = gateway.post("/v1/completions", body)
            assert (found.status, found.json["choices"][0]["token_ids"]) == (200, [5, 12])
            assert gateway.get("/health").status == 200
        next(stream)
        stream.close()  # type: ignore[attr-defined]


async def test_a_call_waits_for_a_server_that_starts_again(tmp_path: Path) -> None:
    with FakeServer(tmp_path) as server:
        server.stay_at_address()
        async with AsyncClient(server.target) as client:
            assert (await client.generate([5], max_tokens=2)).token_ids == answer([5], 2)
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            assert (await client.generate([6], max_tokens=2)).token_ids == answer([6], 2)
            await starting


def test_a_call_outlives_a_death_of_the_engine_only_before_its_first_token(
    tmp_path: Path,
) -> None:
    with FakeServer(tmp_path, step_seconds=0.3) as server, server.client(retries=True) as client:
        write_engine(tmp_path)  # the next one is quick, and this one ends nothing before it dies
        stream = client.stream([5], max_tokens=4000)
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(client.generate, [6], max_tokens=150)
            assert eventually(lambda: server.metrics()["loramux_requests_running"] == 2)
            server.kill_engine()
            with pytest.raises(UnavailableError):
                list(stream)
            assert whole.result(timeout=60).token_ids == answer([6], 150)


@pytest.mark.parametrize("targets", [[], ["127.0.0.1:1", "nowhere"], ["127.0.0.1:1", "[::1]:1"]])
def test_addresses_that_cannot_be_reached_together_are_refused(targets: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="target"):
        Client(targets)
