"""A server that is told to end: what becomes of calls, connections and a second signal."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from loramux import Client
from loramux.errors import UnavailableError
from tests.support.fake_server import FakeServer
from tests.support.polling import eventually, is_alive

LONG = 3000


def process_of(server: FakeServer) -> "subprocess.Popen[bytes]":
    assert server._process is not None
    return server._process


def is_refused(client: Client) -> bool:
    try:
        client.info()
    except UnavailableError as error:
        return bool(error.retry_delay)
    return False


def test_what_takes_too_long_ends_with_a_status_that_invites_to_try_again(tmp_path: Path) -> None:
    with (
        FakeServer(tmp_path, "--drain-timeout", "0.3", step_seconds=0.01) as server,
        server.client() as client,
    ):
        stream = client.stream([5], max_tokens=LONG)
        assert next(stream).token_ids
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(server.stop)
            with pytest.raises(UnavailableError, match="shutting down") as caught:
                list(stream)
            assert (caught.value.reason, bool(caught.value.retry_delay)) == (
                "ENGINE_UNAVAILABLE", True,
            )  # fmt: skip
            assert ending.result() == 0


def test_neither_an_idle_connection_nor_who_gives_up_keeps_it_waiting(tmp_path: Path) -> None:
    with (
        FakeServer(tmp_path, "--drain-timeout", "600", step_seconds=0.01) as server,
        server.client() as idle,
        grpc.insecure_channel(server.target) as connected,
        server.client() as client,
    ):
        idle.info()
        grpc.channel_ready_future(connected).result(timeout=60)
        stream = client.stream([5], max_tokens=LONG)
        next(stream)
        os.kill(server.pid, signal.SIGTERM)
        assert eventually(lambda: is_refused(idle))
        assert process_of(server).poll() is None  # the stream is still under way
        stream.close()  # type: ignore[attr-defined]
        assert process_of(server).wait(timeout=60) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    server = FakeServer(tmp_path, "--drain-timeout", "600", step_seconds=0.01).start()
    engine = server.engine_pid
    with server.client() as client:
        stream = client.stream([5], max_tokens=LONG)
        next(stream)
        os.kill(server.pid, signal.SIGTERM)
        assert eventually(lambda: is_refused(client))
        time.sleep(0.3)
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(UnavailableError):
            list(stream)
    assert process_of(server).wait(timeout=60) == 1
    assert eventually(lambda: not is_alive(engine))


def test_the_end_of_a_terminal_is_nothing_to_a_server_started_with_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = FakeServer(tmp_path).start()
    finally:
        signal.signal(signal.SIGHUP, before)
    with server.client() as client:
        os.killpg(server.pid, signal.SIGHUP)
        assert client.generate([5], max_tokens=3).token_ids
    assert server.stop() == 0


def test_without_nohup_it_lets_calls_finish(tmp_path: Path) -> None:
    """Also where a signal comes twice at once, as from `timeout`."""
    with (
        FakeServer(tmp_path, "--drain-timeout", "600", step_seconds=0.01) as server,
        server.client() as client,
    ):
        stream = client.stream([5], max_tokens=100)
        tokens = list(next(stream).token_ids)
        os.kill(server.pid, signal.SIGHUP)
        os.kill(server.pid, signal.SIGTERM)
        for chunk in stream:
            tokens += chunk.token_ids
        assert len(tokens) == 100
        assert process_of(server).wait(timeout=60) == 0
