"""Engines that have no more memory: callers are told so, and another engine comes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux import Client
from loramux.errors import LoramuxError, UnavailableError
from tests.support.fake_server import EXHAUSTS, FakeServer, answer
from tests.support.polling import eventually, is_alive
from tests.support.server import RunningServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CONTEXT = 4096
ADAPTERS = ["wide", "rs", "small", None]


def test_callers_learn_that_memory_ran_out(tmp_path: Path) -> None:
    with FakeServer(tmp_path) as server, server.client() as client:
        engine = server.engine_pid
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(end_of, client, [5])
            assert eventually(lambda: server.metrics()["loramux_requests_running"] == 1)
            ends = [end_of(client, [EXHAUSTS]), other.result(timeout=60)]
        for error in ends:
            assert isinstance(error, UnavailableError)
            assert error.reason == "ENGINE_OUT_OF_MEMORY"
            assert error.retry_delay
        assert eventually(lambda: not is_alive(engine))
        assert eventually(lambda: serves(client))
        assert client.generate([5], max_tokens=3).token_ids == answer([5], 3)
        # Not the reason of the next death, too.
        starts = server.metrics()["loramux_engine_starts_total"]
        server.kill_engine()
        assert eventually(lambda: server.metrics()["loramux_engine_starts_total"] > starts)
        assert eventually(lambda: serves(client))
    log = server.log.read_text()
    assert "the engine died with an out-of-memory error" in log
    assert "MemoryError" in log
    assert "the engine died with SIGKILL" in log


@pytest.fixture
def server(tmp_path: Path, roomy_base: Path, tiny_adapters: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path, roomy_base, "--adapters", str(tiny_adapters)) as server:
        yield server


def test_an_engine_that_gets_no_more_memory_from_the_kernel_is_replaced(
    server: RunningServer,
) -> None:
    with server.client() as client, grpc.insecure_channel(server.target) as channel:
        for name in ADAPTERS:  # so that loads have their threads
            client.generate("a", adapter=name, max_tokens=2)
        health = health_pb2_grpc.HealthStub(channel)
        statuses = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(statuses).status == SERVING
        engine = server.engine_pid
        psutil.Process(engine).rlimit(psutil.RLIMIT_AS, (1, 1))
        with ThreadPoolExecutor(16) as pool:
            ends = list(pool.map(lambda number: hungry(client, number), range(32)))
        assert any(ends)
        for error in filter(None, ends):
            assert isinstance(error, UnavailableError), error
            # Where memory is lacking chance decides: in C it ends the process without a word.
            assert error.reason in ("ENGINE_OUT_OF_MEMORY", "ENGINE_UNAVAILABLE")
            assert error.retry_delay
        assert next(statuses).status == NOT_SERVING
        assert next(statuses).status == SERVING
        assert eventually(lambda: not is_alive(engine))
        assert hungry(client, 0) is None


def hungry(client: Client, number: int) -> LoramuxError | None:
    """Ask for much at once, and return what that ended with if it did not end well."""
    prompt = [3 + (number + position) % 200 for position in range(CONTEXT // 2)]
    try:
        client.generate(
            prompt, adapter=ADAPTERS[number % 4], n=4, max_tokens=50, logprobs=20, ignore_eos=True
        )
    except LoramuxError as error:
        return error
    return None


def end_of(client: Client, prompt: list[int]) -> LoramuxError:
    with pytest.raises(LoramuxError) as caught:
        list(client.stream(prompt, max_tokens=4000))
    return caught.value


def serves(client: Client) -> bool:
    try:
        return bool(client.generate([5], max_tokens=1).token_ids)
    except UnavailableError:
        return False
