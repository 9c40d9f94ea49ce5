"""Engines that crash, raise, hang or stop: callers are told at once, and another engine comes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux import Client
from loramux.cli import quarantine
from loramux.errors import (
    FailedPreconditionError,
    LoramuxError,
    NotFoundError,
    UnavailableError,
)
from tests.support.fake_server import DIES, HANGS, RAISES, STOPS, FakeServer, answer
from tests.support.polling import eventually, is_alive

WATCHDOG = 2.0
"""Seconds: a machine with other things to do lets an engine wait for some tenths."""
LONG = {"max_tokens": 4000}
DEADLY = [DIES, 77]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    folder = tmp_path_factory.mktemp("server")
    with FakeServer(folder, "--watchdog", str(WATCHDOG), step_seconds=0.01) as server:
        yield server


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with server.client() as client:
        assert eventually(lambda: is_serving(client))
        yield client


def is_serving(client: Client) -> bool:
    try:
        return client.generate([5], max_tokens=2).token_ids == answer([5], 2)
    except UnavailableError:
        return False


def end_of(client: Client, prompt: list[int]) -> LoramuxError:
    """Return what a stream of `prompt` ended with."""
    with pytest.raises(LoramuxError) as caught:
        list(client.stream(prompt, **LONG))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("token", [DIES, RAISES, HANGS, STOPS])
def test_a_fault_of_the_engine_ends_every_stream_and_another_engine_comes(
    server: FakeServer, client: Client, token: int
) -> None:
    engine = server.engine_pid
    with ThreadPoolExecutor(4) as pool:
        # Not the same ones each time: they would be suspected.
        others = [pool.submit(end_of, client, [number, token]) for number in range(3)]
        assert eventually(lambda: server.metrics()["loramux_requests_running"] == 3)
        others.append(pool.submit(end_of, client, [token]))
        ends = [other.result(timeout=60) for other in others]
    for error in ends:
        assert isinstance(error, UnavailableError)
        assert error.reason == "ENGINE_UNAVAILABLE"
        assert error.retry_delay
    assert eventually(lambda: not is_alive(engine))
    assert eventually(lambda: is_serving(client))


def test_an_engine_that_is_busy_or_idle_for_longer_than_the_watchdog_lives_on(
    server: FakeServer, client: Client
) -> None:
    engine = server.engine_pid
    assert len(client.generate([5], max_tokens=220).token_ids) == 220  # 2.2 s
    time.sleep(1.25 * WATCHDOG)
    assert server.engine_pid == engine
    assert is_serving(client)


def test_a_server_that_was_stopped_with_its_engine_goes_on_with_it(
    server: FakeServer, client: Client
) -> None:
    engine = server.engine_pid
    stream = client.stream([9], max_tokens=20)
    tokens = next(stream).token_ids
    for number in (signal.SIGSTOP, signal.SIGCONT):
        os.killpg(server.pid, number)
        if number == signal.SIGSTOP:
            time.sleep(1.25 * WATCHDOG)
    tokens += sum((chunk.token_ids for chunk in stream), ())
    assert tokens == answer([9], 20)
    assert server.engine_pid == engine


def test_a_request_that_the_engine_did_not_survive_twice_is_refused_until_it_is_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit_log = tmp_path / "audit.jsonl"
    with FakeServer(tmp_path, "--audit-log", str(audit_log)) as server:
        with server.client() as client:
            key = refused_after_two_deaths(client)
        # What is refused is so after a restart.
        assert server.stop() == 0
        server.start()
        engine = server.engine_pid
        with server.client() as client:
            assert isinstance(end_of(client, DEADLY), FailedPreconditionError)
            quarantine.ls(server.target)
            assert key in capsys.readouterr().out
            assert server.metrics()["loramux_quarantined"] == 1
            quarantine.clear(key, server.target)
            assert client.quarantined() == []
            assert server.metrics()["loramux_quarantined"] == 0
            with pytest.raises(NotFoundError) as caught:
                client.clear_quarantined(key)
            assert caught.value.reason == "NOT_QUARANTINED"
            assert isinstance(end_of(client, DEADLY), UnavailableError)
        assert eventually(lambda: not is_alive(engine))
    acts = [json.loads(line) for line in audit_log.read_text().splitlines()]
    assert [(act["act"], act["target"], act["outcome"]) for act in acts] == [
        ("quarantine.set", {"key": key}, "OK"),
        ("quarantine.clear", {"key": key}, "OK"),
        ("quarantine.clear", {"key": key}, "NOT_FOUND"),
    ]
    assert acts[0]["by"] == "server"
    assert "died 2 times" in acts[0]["cause"]


def refused_after_two_deaths(client: Client) -> str:
    """Cause two deaths with the same request, and return under which key it is refused then."""
    for _ in range(2):
        assert isinstance(end_of(client, DEADLY), UnavailableError)
        assert eventually(lambda: is_serving(client))
    error = end_of(client, DEADLY)
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "REQUEST_QUARANTINED"
    (entry,) = client.quarantined()
    assert entry.key in str(error)
    assert "2 times" in entry.cause
    assert client.generate([DIES - 1], max_tokens=1).token_ids  # others are served
    return entry.key


def test_a_crash_loop_ends_the_server_with_an_exit_code(tmp_path: Path) -> None:
    server = FakeServer(tmp_path, "--quarantine-deaths", "0").start()
    process = server._process
    assert isinstance(process, subprocess.Popen)
    try:
        with server.client() as client:
            for _ in range(5):
                # An engine that starts too slowly is replaced by another after a minute.
                assert eventually(lambda: is_serving(client), 90), server.log.read_text()[-4000:]
                end_of(client, [DIES])
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
        process.wait()
    assert "died 5 times" in server.log.read_text()


def test_a_server_without_work_shows_that_it_makes_tokens(tmp_path: Path) -> None:
    with (
        FakeServer(tmp_path, "--probe-interval", "0.1") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        assert eventually(lambda: server.metrics()["loramux_step_seconds_count"] >= 2)
        health = health_pb2_grpc.HealthStub(channel)
        answered = health.Check(health_pb2.HealthCheckRequest(service=""))
        assert answered.status == health_pb2.HealthCheckResponse.SERVING
