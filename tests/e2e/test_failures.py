"""What callers see when the engine dies, when they give up themselves, and when the server ends."""

import contextlib
import functools
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from loramux import Client
from loramux._wire import raising
from loramux.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams
from loramux_adapters import pack
from tests.support.polling import eventually, is_alive
from tests.support.server import RunningServer
from tests.support.unread import Unread, held
from tests.support.wire import GENERATE, STREAM_GENERATE, chunks, refusal, send, upload_header

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
LONG: dict[str, Any] = {**GREEDY, "max_tokens": 100_000}
"""More than is made while a test runs, and more than has room on its way to who does not read."""
MAX_RUNNING = 16
MAX_WAITING = 16
DEFAULT_TIMEOUT = 1.5
_NAMES = (
    "Adapter", "Alias", "Classification", "Embedding", "Generation", "Quarantine",
    "QuestionAnswering", "Residency", "Server", "Tokenization", "Upload",
)  # fmt: skip
SERVICES = [*(f"loramux.v1.{name}Service" for name in _NAMES), "inference.GRPCInferenceService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, tiny_adapters: Path
) -> Iterator[RunningServer]:
    with RunningServer(
        tmp_path_factory.mktemp("server"), roomy_base, "--adapters", str(tiny_adapters),
        "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING),
        "--default-timeout", str(DEFAULT_TIMEOUT), "--drain-timeout", "60",
    ) as server:  # fmt: skip
        yield server


@pytest.fixture
def server(started: RunningServer) -> RunningServer:
    """A server that answers, whatever the test before did to it."""
    if not psutil.pid_exists(started.pid):
        started.start()
    return started


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


def is_idle(server: RunningServer) -> bool:
    metrics = server.metrics()
    return not any(
        metrics[f"loramux_{gauge}"]
        for gauge in ("requests_running", "requests_waiting", "kv_blocks_used")
    )


def outcomes(server: RunningServer, *names: str) -> float:
    """How many requests ended in one of these ways."""
    return sum(
        value
        for sample, value in server.metrics().items()
        if sample.startswith("loramux_requests_total")
        and any(f'outcome="{name}"' in sample for name in names)
    )


# The engine dies


@dataclass
class Death:
    """Everything that was seen around one death of the engine."""

    errors: list[LoramuxError]
    """What the calls that were open ended with."""
    seconds: list[float]
    """How long after the death each of them ended."""
    health: list[int]
    """What a watcher of the health was told, in order."""
    refusals: list[LoramuxError]
    """What calls that need the engine ended with while it was away."""
    adapters: list[str]
    """What was listed meanwhile."""
    engines: tuple[int, int]
    metrics: tuple[dict[str, float], dict[str, float], dict[str, float]]
    """Before it, while the engine was away, and after it."""
    answers: tuple[tuple[int, ...], tuple[int, ...]]
    """What one request said before it and after it."""


def seen_around_a_death(server: RunningServer, folder: Path) -> Death:
    health: list[int] = []
    errors: list[LoramuxError] = []
    seconds: list[float] = []
    refusals: list[LoramuxError] = []
    open_calls = threading.Semaphore(0)
    killed = 0.0
    package = io.BytesIO()
    pack(folder, package)
    upload = [upload_header("meanwhile", package.getvalue()), *chunks(package.getvalue())]

    def watch(channel: grpc.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        answers = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=240)
        with contextlib.suppress(grpc.RpcError):
            for answer in answers:
                health.append(answer.status)
                if health[-2:] == [NOT_SERVING, SERVING]:
                    return

    def follow(call: Callable[[], Any]) -> None:
        with pytest.raises(LoramuxError) as caught:
            call()
        seconds.append(time.monotonic() - killed)
        errors.append(caught.value)

    with (
        server.client() as client,
        grpc.insecure_channel(server.target) as channel,
        ThreadPoolExecutor(16) as pool,
    ):

        def stream(adapter: str | None) -> None:
            for number, _ in enumerate(client.stream("hello", adapter=adapter, **LONG)):
                if number == 0:
                    open_calls.release()

        before = client.generate("hello", adapter="wide", **GREEDY).token_ids
        engine = server.engine_pid
        watching = pool.submit(watch, channel)
        adapters = [None, "small", "wide", "rs", "single", "wide"]
        calls = [pool.submit(follow, functools.partial(stream, name)) for name in adapters]
        calls.append(pool.submit(follow, lambda: client.generate("hello", n=2, **LONG)))
        for _ in adapters:
            assert open_calls.acquire(timeout=60)
        assert eventually(lambda: server.metrics()["loramux_requests_running"] == 8)
        metrics_before = server.metrics()
        killed = time.monotonic()
        os.kill(engine, signal.SIGKILL)
        for call in calls:
            call.result(timeout=60)
        for refused in (
            lambda: client.generate("hello"),
            lambda: list(client.stream("hello", adapter="wide")),
            lambda: AdapterServiceStub(channel).UploadAdapter(iter(upload)),
        ):
            with pytest.raises(LoramuxError) as caught, raising():
                refused()
            refusals.append(caught.value)
        listed = [adapter.name for adapter in client.adapters.list()]
        metrics_meanwhile = server.metrics()
        watching.result()
        after = client.generate("hello", adapter="wide", **GREEDY).token_ids
    return Death(
        errors, seconds, health, refusals, listed, (engine, server.engine_pid),
        (metrics_before, metrics_meanwhile, server.metrics()), (before, after),
    )  # fmt: skip


@pytest.fixture(scope="module")
def death(started: RunningServer, tiny_adapters: Path) -> Death:
    return seen_around_a_death(started, tiny_adapters / "small")


def test_every_open_call_ends_when_the_engine_dies(death: Death) -> None:
    assert len(death.errors) == 7
    for error in death.errors:
        assert isinstance(error, UnavailableError)
        assert error.reason == "ENGINE_UNAVAILABLE"
        assert error.retry_delay is not None
        assert error.retry_delay > 0
    assert max(death.seconds) < 30  # 1 s promised, to who has a processor


def test_calls_are_refused_until_the_engine_is_back(death: Death) -> None:
    for error in death.refusals:
        assert isinstance(error, UnavailableError)
        assert (error.reason, error.field) == ("ENGINE_UNAVAILABLE", "")
        assert error.retry_delay
    assert death.adapters == ["rs", "single", "small", "wide"]  # what needs no engine goes on


def test_health_shows_the_death_and_the_recovery(death: Death) -> None:
    assert death.health == [SERVING, NOT_SERVING, SERVING]


def test_a_new_engine_answers_as_the_old_one_did(death: Death) -> None:
    old, new = death.engines
    assert old != new
    assert not is_alive(old)
    assert death.answers[0] == death.answers[1]


def test_the_metrics_count_the_death(death: Death) -> None:
    before, meanwhile, after = death.metrics
    assert before["loramux_engine_starts_total"] == 1
    assert after["loramux_engine_starts_total"] == 2
    up = [metrics["loramux_engine_up"] for metrics in death.metrics]
    assert up == [1, 0, 1]
    for metrics in (meanwhile, after):
        assert metrics["loramux_requests_running"] == 0
        assert metrics["loramux_kv_blocks_used"] == 0
    assert meanwhile['loramux_adapters_resident{tier="device"}'] == 0
    # Counters go on from where they were.
    for counter in ("misses", "hits"):
        name = f'loramux_adapter_cache_{counter}_total{{tier="device"}}'
        assert after[name] >= meanwhile[name] >= before[name] > 0
    unavailable = 'loramux_requests_total{adapter="wide",outcome="unavailable"}'
    assert after[unavailable] == 3  # two that were open and one that was refused


def test_an_engine_that_dies_while_it_loads_is_started_again(
    server: RunningServer, client: Client, death: Death
) -> None:
    def is_another(old: int) -> bool:
        try:
            return server.engine_pid != old
        except (ValueError, psutil.Error):  # none at the moment
            return False

    for _ in range(2):
        engine = server.engine_pid
        os.kill(engine, signal.SIGKILL)
        assert eventually(lambda old=engine: is_another(old))  # type: ignore[misc]
    assert eventually(lambda: is_serving(client), seconds=120)
    assert client.generate("hello", adapter="wide", **GREEDY).token_ids == death.answers[0]


def is_serving(client: Client) -> bool:
    try:
        return bool(client.generate("hello", max_tokens=1).token_ids)
    except UnavailableError:
        return False


# The caller gives up


def test_a_cancelled_stream_frees_what_it_held(server: RunningServer, client: Client) -> None:
    stream = client.stream("hello", adapter="wide", n=8, **LONG)

    def runs() -> bool:
        next(stream)  # which is paused where that is not done
        metrics = server.metrics()
        return metrics["loramux_requests_running"] == 8 <= metrics["loramux_kv_blocks_used"]

    assert eventually(runs)
    before = outcomes(server, "cancelled")
    stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: is_idle(server))
    assert eventually(lambda: outcomes(server, "cancelled") == before + 1)


def test_a_lost_connection_frees_what_it_held(server: RunningServer) -> None:
    with server.client() as client:
        stream = client.stream("hello", adapter="rs", **LONG)
        next(stream)
    assert eventually(lambda: is_idle(server))


def test_a_request_cancelled_in_the_queue_never_runs(server: RunningServer) -> None:
    with all_running(server), ThreadPoolExecutor(1) as pool, server.client() as other:
        waiting = pool.submit(other.generate, "hello", n=8, **GREEDY)
        assert eventually(lambda: server.metrics()["loramux_requests_waiting"] == 8)
        other.close()
        assert eventually(lambda: server.metrics()["loramux_requests_waiting"] == 0)
        with pytest.raises(LoramuxError):
            waiting.result(timeout=60)
        assert server.metrics()["loramux_requests_running"] == MAX_RUNNING
    assert eventually(lambda: is_idle(server))


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_a_deadline_ends_a_request_and_frees_what_it_held(
    server: RunningServer, client: Client, how: str
) -> None:
    def call() -> None:
        list(getattr(client, how)("hello", adapter="wide", timeout=2, **LONG))

    before = outcomes(server, "cancelled", "deadline_exceeded")
    with pytest.raises(DeadlineExceededError):
        call()
    assert eventually(lambda: is_idle(server))
    assert eventually(lambda: outcomes(server, "cancelled", "deadline_exceeded") == before + 1)


@pytest.mark.parametrize("method", [GENERATE, STREAM_GENERATE], ids=["generate", "stream"])
def test_a_call_without_a_deadline_has_that_of_the_server(
    server: RunningServer, method: str
) -> None:
    """D25."""
    request = GenerateRequest(prompt="hello", sampling=SamplingParams(**LONG))
    begin = time.monotonic()
    with (
        grpc.insecure_channel(server.target) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        send(channel, method, request.SerializeToString(), timeout=None, whole=True)
    refused = refusal(caught.value)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.reason == "DEADLINE_EXCEEDED"
    assert f"{DEFAULT_TIMEOUT} s" in refused.message
    assert time.monotonic() - begin >= DEFAULT_TIMEOUT
    assert eventually(lambda: is_idle(server))


def test_a_stream_that_is_not_read_holds_nothing_and_goes_on_when_it_is(
    server: RunningServer, client: Client
) -> None:
    options = {**GREEDY, "max_tokens": 400}
    alone = client.generate("hello", adapter="wide", **options).token_ids
    sampling = SamplingParams(n=8, **options)
    request = GenerateRequest(prompt="hello", adapter="wide", sampling=sampling)
    with Unread(server.target, request) as stream:
        assert eventually(lambda: server.metrics()["loramux_requests_paused"] == 8)
        assert is_idle(server)
        stream.read()
    assert [tuple(tokens) for tokens in stream.tokens.values()] == [alone] * 8
    assert eventually(lambda: is_idle(server))


@contextlib.contextmanager
def all_running(server: RunningServer) -> Iterator[None]:
    """Let as many completions run as can while the block does, and end them then.

    They are no streams: what comes of them has room, though nobody reads it.
    """
    with server.client() as client, ThreadPoolExecutor(MAX_RUNNING // 8) as pool:
        for _ in range(MAX_RUNNING // 8):
            pool.submit(client.generate, "hello", n=8, **LONG)
        try:
            assert eventually(lambda: server.metrics()["loramux_requests_running"] == MAX_RUNNING)
            yield
        finally:
            client.close()


# Too much at once, and what must not reach the engine


def test_a_full_queue_refuses_and_goes_on(server: RunningServer, client: Client) -> None:
    """F23."""
    waiting = [client.stream("hello", n=8, **LONG) for _ in range(MAX_WAITING // 8)]
    with ThreadPoolExecutor(len(waiting)) as pool:
        with all_running(server):
            started = [pool.submit(next, stream) for stream in waiting]
            assert eventually(lambda: server.metrics()["loramux_requests_waiting"] == MAX_WAITING)
            with pytest.raises(ResourceExhaustedError) as caught:
                client.generate("hello", **GREEDY)
            assert caught.value.reason == "QUEUE_FULL"
            assert caught.value.retry_delay
        for first in started:
            assert first.result(timeout=60).token_ids
    for stream in waiting:
        stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: is_idle(server))
    assert client.generate("hello", **GREEDY).token_ids


def test_a_token_that_only_the_tokenizer_knows_never_reaches_the_engine(
    server: RunningServer, client: Client
) -> None:
    """D12."""
    engine = server.engine_pid
    with pytest.raises(InvalidArgumentError, match="prompt holds token 259") as caught:
        client.generate("a<beyond>b", parse_special_tokens=True)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "prompt")
    assert client.generate("a<beyond>b", **GREEDY).token_ids
    assert server.engine_pid == engine


def test_a_text_without_tokens_is_refused(server: RunningServer, client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="prompt has no tokens") as caught:
        client.generate("␀␀", add_special_tokens=False)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "prompt")
    assert is_idle(server)


# What others can ask


def test_health_is_known_for_each_service(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ["", *SERVICES]:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="loramux.v1.NoService"))
    assert refusal(caught.value).code is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_every_service(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            *SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
        }  # fmt: skip
        file = database.FindFileContainingSymbol("loramux.v1.GenerationService")
        theirs = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert file.name == "loramux/v1/generation.proto"
    assert theirs.name == "inference/open_inference.proto"


def test_an_unknown_method_is_unimplemented(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        for method in ("/loramux.v1.GenerationService/Nothing", "/loramux.v1.Nothing/Generate"):
            with pytest.raises(grpc.RpcError) as caught:
                send(channel, method, b"")
            assert refusal(caught.value).code is grpc.StatusCode.UNIMPLEMENTED


# The server ends


def test_a_killed_server_takes_its_engine_along(server: RunningServer, client: Client) -> None:
    engine = server.engine_pid
    stream = client.stream("hello", **LONG)
    next(stream)
    server.kill()
    with pytest.raises(UnavailableError):
        list(stream)
    assert eventually(lambda: not is_alive(engine))


def test_a_server_that_is_stopped_finishes_what_it_began(
    server: RunningServer, client: Client
) -> None:
    engine = server.engine_pid
    alone = client.generate("hello", adapter="wide", **GREEDY | {"max_tokens": 400}).token_ids
    with (
        held(server.target, max_tokens=400, adapter="wide") as stream,
        ThreadPoolExecutor(1) as pool,
        grpc.insecure_channel(server.target) as channel,
        server.client() as late,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        # Somebody who watches keeps nobody waiting.
        statuses = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(statuses).status == SERVING
        ending = pool.submit(server.stop)
        assert next(statuses).status == NOT_SERVING
        assert eventually(lambda: is_refused(late))
        for call in (late.info, functools.partial(late.generate, "hello")):
            with pytest.raises(UnavailableError, match="shutting down") as caught:
                call()
            assert caught.value.reason == "ENGINE_UNAVAILABLE"
            assert caught.value.retry_delay
        assert health.Check(health_pb2.HealthCheckRequest(service="")).status == NOT_SERVING
        stream.read()
        assert ending.result() == 0
    assert tuple(stream.tokens[0]) == alone
    assert not is_alive(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_cuts_nothing_off(
    server: RunningServer, client: Client, number: signal.Signals
) -> None:
    """As from a terminal, which may be closed as well, or from systemd."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the signal is ignored here, as by nohup, and so by what is started")
    alone = client.generate("hello", **GREEDY | {"max_tokens": 400}).token_ids
    with held(server.target, max_tokens=400) as stream, ThreadPoolExecutor(1) as pool:
        ending = pool.submit(server.stop, number, whole_group=True)
        stream.read()
        assert ending.result() == 0
    assert tuple(stream.tokens[0]) == alone


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_still_starts_ends_at_once(
    tmp_path: Path, tiny_base: Path, number: signal.Signals
) -> None:
    server = RunningServer(tmp_path, tiny_base).launch()

    def has_engine() -> bool:
        try:
            return is_alive(server.engine_pid)
        except (ValueError, psutil.Error):  # none yet
            return False

    assert eventually(has_engine)
    engine = server.engine_pid
    assert server.stop(number) == 0
    assert not server.was_ready
    assert not is_alive(engine)


def is_refused(client: Client) -> bool:
    try:
        client.info()
    except UnavailableError:
        return True
    return False
