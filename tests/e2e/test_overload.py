"""What callers are told over a socket when too much comes, and whose trouble that is."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux._channel import RETRY_TOKENS
from loramux.errors import ResourceExhaustedError
from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams
from loramux_server.access.caller import Role
from tests.overload.campaign import MAX_GROWTH, offer_all, table
from tests.overload.clocks import repeating
from tests.overload.generator import Asking, Generator
from tests.overload.levels import PATIENCE
from tests.overload.storm import storm
from tests.support.access import Keys, shown
from tests.support.fake_server import FakeServer, answer, asked_shortly
from tests.support.polling import eventually
from tests.support.wire import GENERATE, Refusal, refusal

MAX_RUNNING = 2
MAX_WAITING = 30
MAX_TOKENS = 1400
MAX_BYTES = 1400
MAX_TRIES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    """Tenant -> key."""
    making = Keys(folder / "store")
    made = {tenant: making.make(tenant, Role.USER).text for tenant in ("noisy", "quiet")}
    making.close()
    return made


@pytest.fixture(scope="module")
def server(folder: Path, keys: dict[str, str]) -> Iterator[FakeServer]:
    with FakeServer(
        folder, "--block-size", "4", "--max-batch-tokens", "128",
        "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING),
        "--max-waiting-tokens", str(MAX_TOKENS), "--max-waiting-bytes", str(MAX_BYTES),
        module="tests.support.queueing_engine", step_seconds=0.004, token_seconds=0.001,
    ) as server:  # fmt: skip
        yield server


class Crowd:
    """Requests of one tenant, several at once."""

    def __init__(self, server: FakeServer, key: str) -> None:
        self._server = server
        self._exits = contextlib.ExitStack()
        self.client = self._exits.enter_context(server.client(key=key))
        self._pool = ThreadPoolExecutor(64)
        self._calls: list[Future[Any]] = []
        self._is_over = threading.Event()
        self.num_answers = 0

    def run(self, num_prompt: int = 1) -> None:
        """Let as many run as can, for as long as there is the crowd."""
        for number in range(MAX_RUNNING):  # each its own: equal ones share memory
            stream = self.client.stream(
                [50 + number] * num_prompt, max_tokens=1000, ignore_eos=True, timeout=60
            )
            next(stream)
            self._exits.callback(stream.close)  # type: ignore[attr-defined]

    def ask(self, prompt: int, num_prompt: int, *, n: int = 1, max_tokens: int = 20) -> None:
        """Ask for what will take its time."""
        self._calls.append(self._pool.submit(self._answered, [prompt] * num_prompt, n, max_tokens))

    def _answered(self, prompt: list[int], n: int, max_tokens: int) -> None:
        with contextlib.suppress(ResourceExhaustedError):
            self.client.generate(prompt, n=n, max_tokens=max_tokens, ignore_eos=True, timeout=60)
            self.num_answers += 1

    def flood(self, count: int) -> None:
        """Ask `count` times at once, and again and again for as long as there is the crowd."""
        self._calls += [self._pool.submit(self._asks_on, number) for number in range(count)]

    def _asks_on(self, prompt: int) -> None:
        while not self._is_over.is_set():
            self._answered([prompt], 1, 20)
            self._is_over.wait(0.05)  # who was refused

    def waits(self, num_tokens: int) -> bool:
        metric = "loramux_waiting_prompt_tokens"
        return eventually(lambda: self._server.metrics()[metric] == num_tokens)

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._exits.close()
        self._pool.shutdown()
        for call in self._calls:
            with contextlib.suppress(Exception):
                call.result()
        assert eventually(lambda: not self._server.metrics()["loramux_requests_running"])


def refused(
    server: FakeServer, key: str, num_prompt: int, *, n: int = 1, timeout: float = 60.0
) -> Refusal:
    """Return what a request is told that has to be refused.

    On a busy machine the time of one may be over before it is looked at.
    """
    sampling = SamplingParams(max_tokens=1, n=n, ignore_eos=True)
    request = GenerateRequest(prompt_token_ids=[9] * num_prompt, sampling=sampling)
    with grpc.insecure_channel(server.target) as channel:
        unary: Any = channel.unary_unary(GENERATE)
        for _ in range(MAX_TRIES):
            with pytest.raises(grpc.RpcError) as caught:
                unary(request.SerializeToString(), timeout=timeout, metadata=shown(key))
            found = refusal(caught.value)
            if found.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                break
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found.retry_delay
    return found


def test_too_many_waiting_tokens(server: FakeServer, keys: dict[str, str]) -> None:
    key = keys["noisy"]
    with Crowd(server, key) as crowd:
        crowd.run()
        crowd.ask(7, 400, n=2)
        assert crowd.waits(800)
        found = refused(server, key, 350, n=2)
        assert found.reason == "QUEUE_FULL"
        assert found.message == f"800 of at most {MAX_TOKENS} prompt tokens are waiting"


def test_too_many_waiting_bytes(server: FakeServer, keys: dict[str, str]) -> None:
    key = keys["noisy"]
    with Crowd(server, key) as crowd:
        crowd.run()
        crowd.ask(7, 1000)
        assert crowd.waits(1000)
        found = refused(server, key, 500)
        assert found.reason == "QUEUE_FULL"
        assert f"of at most {MAX_BYTES} bytes are waiting" in found.message


def test_too_many_waiting_requests(server: FakeServer, keys: dict[str, str]) -> None:
    key = keys["noisy"]
    with Crowd(server, key) as crowd:
        crowd.run()
        for number in range(MAX_WAITING // 6):
            crowd.ask(number, 1, n=6)
        assert crowd.waits(MAX_WAITING)
        found = refused(server, key, 1)
        assert found.reason == "QUEUE_FULL"
        assert found.message == f"the queue is full: {MAX_WAITING} requests may wait"
        # Nobody looks at the prompt before that: this one is none that could ever run.
        assert refused(server, key, 100_000).message == found.message


def test_memory_that_would_be_free_too_late(server: FakeServer, keys: dict[str, str]) -> None:
    key = keys["noisy"]
    with Crowd(server, key) as crowd:
        begin = time.monotonic()
        for number in range(16):  # so that it is known how fast memory becomes free
            crowd.ask(number, 10, max_tokens=30)
        assert eventually(lambda: crowd.num_answers == 16)
        taken = time.monotonic() - begin
        crowd.run(700)
        crowd.ask(7, 650)
        assert crowd.waits(650)
        # One goes before it, which is soon: a quarter of that. But there is no room for both, and
        # so much memory becomes free in about all of it.
        found = refused(server, keys["quiet"], 650, timeout=taken / 2)
        assert found.reason == "MEMORY_UNREACHABLE"
        assert "memory for the 650 tokens of the prompt becomes free in about" in found.message


def test_a_deadline_that_those_before_make_impossible(
    server: FakeServer, keys: dict[str, str]
) -> None:
    key = keys["noisy"]
    with Crowd(server, key) as crowd:
        crowd.client.generate([3] * 500, max_tokens=1)  # so that it is known what a token costs
        crowd.run()
        crowd.ask(7, 600)
        assert crowd.waits(600)
        found = refused(server, key, 1, timeout=0.4)
        assert found.reason == "DEADLINE_UNREACHABLE"
        assert "the request cannot be finished within" in found.message


@contextlib.contextmanager
def stuttering(pid: int) -> Iterator[None]:
    """Let a process stand still most of the time."""

    def stutter() -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)

    with repeating(stutter):
        yield


def test_a_frontend_that_is_behind(tmp_path: Path) -> None:
    errors: list[ResourceExhaustedError] = []
    with FakeServer(tmp_path, "--max-lag", "0.01") as server, server.client() as client:

        def is_refused() -> bool:
            try:
                client.generate([5], max_tokens=1)
            except ResourceExhaustedError as error:
                errors.append(error)
            return bool(errors)

        with stuttering(server.pid):
            assert eventually(is_refused, seconds=30)
        assert server.metrics()['loramux_requests_shed_total{cause="lag"}'] >= 1
    (error,) = errors
    assert error.reason == "SERVER_BUSY"
    assert "it lags by" in str(error)
    assert error.retry_delay


def test_a_tenant_that_floods_the_server_makes_nobody_else_wait_long(
    server: FakeServer, keys: dict[str, str]
) -> None:
    shed = 'loramux_requests_shed_total{cause="requests"}'
    before = server.metrics()[shed]
    with Crowd(server, keys["noisy"]) as noisy, server.client(key=keys["quiet"]) as quiet:
        noisy.flood(2 * MAX_WAITING)
        assert eventually(lambda: server.metrics()["loramux_requests_waiting"] > 20)
        waited = []
        for _ in range(4):
            answered = noisy.num_answers
            assert len(quiet.generate([9], max_tokens=20, ignore_eos=True).token_ids) == 20
            waited.append(noisy.num_answers - answered)
        assert server.metrics()["loramux_requests_waiting"], "nobody had to wait"
    # Those that run, as many as end beside its own, and some whose answers are on their way. What
    # came while this process had no processor is counted too, so not each time will do.
    assert min(waited) <= 3 * MAX_RUNNING
    assert server.metrics()[shed] > before


def test_five_times_of_what_can_be_served_harms_nothing(
    server: FakeServer, keys: dict[str, str]
) -> None:
    """`make overload` looks at more, and for longer."""

    def is_well_served() -> bool:
        """Return whether most is served while others are refused at once."""
        asking = Asking(target=server.target, asks=asked_shortly, max_tokens=20, key=keys["noisy"])
        outcome = offer_all(server, asking, count=MAX_RUNNING, seconds=2.0, levels=[5.0])
        (level,) = outcome.levels
        reasons = {answer.reason for answer in level.answers}
        assert reasons <= {"", "DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE", "QUEUE_FULL"}
        assert not level.num_hung
        assert level.memory <= outcome.memory + MAX_GROWTH
        print(table(outcome))
        return "DEADLINE_UNREACHABLE" in reasons and level.share >= 0.5

    # What can be served may change between the moment that it is measured and the next second.
    assert any(is_well_served() for _ in range(3))


def test_a_crowd_that_tries_again_leaves_a_server_that_serves(tmp_path: Path) -> None:
    limits = ("--max-running", "2", "--max-waiting", "8")
    with FakeServer(tmp_path, *limits, step_seconds=0.002) as server:
        steady = Asking(target=server.target, asks=asked_shortly, max_tokens=20)
        crowd = dataclasses.replace(steady, num_clients=4, retries=True)
        with Generator(steady, 1) as generator:
            found = storm(
                server, crowd, generator, factor=5.0, count=2, seconds=1.0, deadline=5.0,
                recovery=0.0, num_processes=1,
            )  # fmt: skip
        assert found.num_attempts <= len(found.during) + crowd.num_clients * RETRY_TOKENS
        assert max(answer.end - answer.begin for answer in found.during) < 5.0 + PATIENCE
        with server.client(retries=True) as client:
            assert client.generate([1], max_tokens=3, timeout=60).token_ids == answer([1], 3)
