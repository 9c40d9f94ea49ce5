"""Streams that nobody reads, over a socket: they harm nobody, and end."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest

from loramux import Client
from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams
from tests.overload.generator import Asking, Generator
from tests.overload.readers import beside_stalled
from tests.support.fake_server import FakeServer, answer, asked_shortly
from tests.support.polling import eventually
from tests.support.unread import Unread
from tests.support.wire import refusal

PATIENCE = 2.0
N = 8
MAX_TOKENS = 1000


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    folder = tmp_path_factory.mktemp("server")
    with FakeServer(
        folder, "--reader-timeout", str(PATIENCE), "--drain-timeout", "60", step_seconds=0.002
    ) as server:
        yield server


@pytest.fixture
def server(started: FakeServer) -> FakeServer:
    """A server that answers, whatever the test before did to it."""
    if not psutil.pid_exists(started.pid):
        started.start()
    return started


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


def unread(server: FakeServer, prompt: int) -> Unread:
    sampling = SamplingParams(max_tokens=MAX_TOKENS, n=N, ignore_eos=True)
    return Unread(server.target, GenerateRequest(prompt_token_ids=[prompt], sampling=sampling))


def is_right(stream: Unread, prompt: int) -> bool:
    """Return whether what was read is what the engine makes, as far as it goes."""
    return all(tuple(found) == answer([prompt], len(found)) for found in stream.tokens.values())


def requests(server: FakeServer) -> tuple[float, float]:
    """Return how many run, and how many are paused."""
    metrics = server.metrics()
    return metrics["loramux_requests_running"], metrics["loramux_requests_paused"]


def test_a_stream_that_is_read_late_is_paused_and_whole_in_the_end(
    server: FakeServer, client: Client
) -> None:
    """F13."""
    with unread(server, 7) as stream:
        assert eventually(lambda: requests(server) == (0, N))
        assert client.generate([9], max_tokens=50).token_ids == answer([9], 50)
        stream.read()
    assert is_right(stream, 7)
    assert [len(tokens) for tokens in stream.tokens.values()] == [MAX_TOKENS] * N


def test_streams_are_read_beside_others_that_are_not(tmp_path: Path) -> None:
    """`make overload` says at what pace."""
    with FakeServer(tmp_path, "--reader-timeout", "100", step_seconds=0.002) as server:
        asking = Asking(target=server.target, asks=asked_shortly, max_tokens=20)
        with Generator(asking, 1) as generator:
            found = beside_stalled(
                server, generator, num_stalled=2, num_fast=2, rounds=1, seconds=0.3,
                max_tokens=MAX_TOKENS,
            )  # fmt: skip
    assert len(found.without) >= 19  # what is between twenty pieces
    assert len(found.beside) >= 19


def test_streams_that_are_not_read_end_and_others_do_not_notice(
    server: FakeServer, client: Client
) -> None:
    """F12."""
    before = server.metrics()
    with ExitStack() as exits:
        streams = [exits.enter_context(unread(server, number)) for number in range(4)]
        while server.metrics()["loramux_streams_unread_total"] < len(streams):
            assert client.generate([9], max_tokens=50).token_ids == answer([9], 50)
        assert eventually(lambda: requests(server) == (0, 0))
        exhausted = 'loramux_requests_total{adapter="base",outcome="resource_exhausted"}'
        assert server.metrics()[exhausted] == before.get(exhausted, 0) + len(streams)
        for number, stream in enumerate(streams[:-1]):
            with pytest.raises(grpc.RpcError) as caught:
                stream.read()
            found = refusal(caught.value)
            assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert found.reason == "READER_TOO_SLOW"
            assert found.message == f"the client read nothing from the stream for {PATIENCE:g} s"
            assert is_right(stream, number)
        assert server.stop() == 0  # the last one is still unread, and nobody waits for it
