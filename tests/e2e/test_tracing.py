"""Traces: from the client over the server to the engine's steps, on real sockets."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from loramux import AsyncClient, Client
from loramux.errors import LoramuxError, NotFoundError
from loramux_server.access.caller import Role
from tests.support.collector import Collector, Got, deaf_endpoint
from tests.support.fake_server import FakeServer
from tests.support.observed import Observed
from tests.support.polling import eventually

GENERATE = "loramux.v1.GenerationService/Generate"
STREAM = "loramux.v1.GenerationService/StreamGenerate"


class Tracer:
    """A program that has traces, as far as the client sees it."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.kept))

    def span(self) -> ReadableSpan:
        """Return the one span that there is, or is about to be."""
        assert eventually(lambda: bool(self.kept.get_finished_spans()))
        (span,) = self.kept.get_finished_spans()
        return span


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


@pytest.fixture(scope="module")
def key(observed: Observed) -> str:
    return observed.keys[Role.USER].text


@pytest.fixture
def client(observed: Observed, key: str, tracer: Tracer) -> Iterator[Client]:
    with observed.server.client(key=key, tracer_provider=tracer.provider) as client:
        yield client


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    """Return the id of its trace, and its own."""
    assert span.context
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def named(spans: list[Got], name: str) -> list[Got]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.begin)


def test_a_trace_goes_from_the_client_to_the_steps_of_the_engine(
    observed: Observed, client: Client, tracer: Tracer
) -> None:
    answer = client.generate(  # with an adapter that no other test of this server has loaded
        "abandon", adapter="public/rs", temperature=0, max_tokens=9, ignore_eos=True, seed=3
    )
    trace_id, client_id = ids_of(tracer.span())
    spans = observed.collector.of(trace_id)
    (call,) = named(spans, GENERATE)
    assert (call.parent, call.kind) == (client_id, "SERVER")
    (whole,) = named(spans, "text_completion tiny")
    assert whole.parent == call.id
    phases = {name: named(spans, name) for name in ("queue", "prefill", "decode")}
    assert [len(found) for found in phases.values()] == [1, 1, 1]
    (queue,), (prefill,), (decode,) = phases.values()
    assert {queue.parent, prefill.parent, decode.parent} == {whole.id}
    # One after the other, without gaps, and within what they are parts of.
    assert call.begin <= whole.begin <= queue.begin <= queue.end == prefill.begin <= prefill.end
    assert prefill.end == decode.begin < decode.end <= whole.end <= call.end
    loads = named(spans, "adapter load")
    assert [load.attributes["loramux.adapter.tier"] for load in loads] == ["host", "device"]
    assert {load.parent for load in loads} == {queue.id}
    assert answer.adapter
    assert {load.attributes["loramux.adapter.digest"] for load in loads} == {answer.adapter.digest}
    steps = sorted(
        named(spans, "engine step"), key=lambda step: int(step.attributes["loramux.token.number"])
    )
    assert [step.attributes["loramux.token.number"] for step in steps] == [1, 2, 4, 8]
    assert [step.parent for step in steps] == [prefill.id, decode.id, decode.id, decode.id]
    for step in steps:
        assert step.attributes["loramux.batch.requests"] == 1
        assert step.attributes["loramux.batch.adapters"] == 1
    assert len(spans) == 5 + len(loads) + len(steps)


def test_a_beam_search_is_one_request_whose_first_step_is_reported(
    observed: Observed, client: Client, tracer: Tracer
) -> None:
    answer = client.generate("abandon", num_beams=4, n=2, max_tokens=5, ignore_eos=True)
    trace_id, _ = ids_of(tracer.span())
    spans = observed.collector.of(trace_id)
    (whole,) = named(spans, "text_completion tiny")
    assert whole.attributes["gen_ai.request.choice.count"] == 2
    assert (
        whole.attributes["gen_ai.usage.output_tokens"]
        == answer.usage.completion_tokens
        == 1 + 4 * 4
    )
    assert whole.attributes["gen_ai.response.finish_reasons"] == ["length"] * 2
    counts = {name: len(named(spans, name)) for name in ("queue", "prefill", "engine step")}
    assert counts == {"queue": 1, "prefill": 1, "engine step": 1}
    assert len(spans) == 5


def test_spans_report_what_the_conventions_name(
    observed: Observed, client: Client, tracer: Tracer
) -> None:
    prompt = "abandon ship"
    client.generate(
        prompt, adapter="public/small", temperature=0, max_tokens=3, ignore_eos=True, seed=7,
        request_id="mine",
    )  # fmt: skip
    trace_id, _ = ids_of(tracer.span())
    spans = observed.collector.of(trace_id)
    (call,) = named(spans, GENERATE)
    assert call.attributes["rpc.system.name"] == "grpc"
    assert call.attributes["rpc.method"] == GENERATE
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert call.attributes["loramux.tenant"] == "acme"
    assert call.resource["service.name"] == "loramux"
    (whole,) = named(spans, "text_completion tiny")
    reported = whole.attributes
    assert reported["gen_ai.operation.name"] == "text_completion"
    assert reported["gen_ai.provider.name"] == "loramux"
    assert reported["gen_ai.request.model"] == reported["gen_ai.response.model"] == "tiny"
    assert reported["gen_ai.response.id"] == "mine"
    assert (reported["gen_ai.request.max_tokens"], reported["gen_ai.request.seed"]) == (3, 7)
    assert reported["gen_ai.request.temperature"] == 0
    assert reported["gen_ai.usage.input_tokens"] == len(prompt) + 1
    assert reported["gen_ai.usage.output_tokens"] == 3
    assert reported["gen_ai.response.finish_reasons"] == ["length"]
    assert reported["loramux.adapter.name"] == "small"
    assert 0 < reported["gen_ai.response.time_to_first_chunk"] <= whole.end - call.begin
    mine = tracer.span().attributes or {}
    assert mine["rpc.method"] == GENERATE
    assert mine["rpc.response.status_code"] == "OK"


def test_the_log_names_the_trace(observed: Observed, client: Client, tracer: Tracer) -> None:
    client.generate("x", max_tokens=1, request_id="logged")
    trace_id, _ = ids_of(tracer.span())
    (line,) = [one for one in observed.calls() if one.get("generation_id") == "logged"]
    assert line["trace_id"] == trace_id


def test_each_completion_has_spans_of_its_own(
    observed: Observed, client: Client, tracer: Tracer
) -> None:
    client.generate("x", n=3, max_tokens=2, ignore_eos=True, seed=1)
    spans = observed.collector.of(ids_of(tracer.span())[0])
    for name in ("queue", "prefill", "decode"):
        reported = [span.attributes["loramux.completion.index"] for span in named(spans, name)]
        assert sorted(reported) == [0, 1, 2]


def test_a_refused_call_has_a_span_that_says_why(
    observed: Observed, client: Client, tracer: Tracer
) -> None:
    with pytest.raises(NotFoundError):
        client.generate("x", adapter="nobody")
    mine = tracer.span()
    assert mine.attributes
    assert mine.attributes["error.type"] == "NOT_FOUND"
    assert not mine.status.is_ok
    assert mine.status.description is None  # the message may quote the request
    (call,) = observed.collector.of(ids_of(mine)[0])
    assert call.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert call.attributes["loramux.reason"] == "ADAPTER_NOT_FOUND"
    assert not call.has_failed  # that is the caller's mistake, not the server's


def test_a_stream_that_is_left_is_cancelled_in_its_trace(tmp_path: Path, tracer: Tracer) -> None:
    with Collector() as collector:
        arguments = ("--tracing-endpoint", collector.endpoint)
        # With so long a step the stream does not end by itself.
        with (
            FakeServer(tmp_path, *arguments, step_seconds=0.2) as server,
            server.client(tracer_provider=tracer.provider) as client,
        ):
            stream = client.stream([1], max_tokens=4000)
            next(stream)
            stream.close()  # type: ignore[attr-defined]
        trace_id, _ = ids_of(tracer.span())
        (call,) = [span for span in collector.of(trace_id) if "rpc.method" in span.attributes]
    assert (call.name, call.attributes["rpc.response.status_code"]) == (STREAM, "CANCELLED")


async def test_the_asynchronous_client_has_the_same_spans(
    observed: Observed, key: str, tracer: Tracer
) -> None:
    target = observed.server.target
    async with AsyncClient(target, key=key, tracer_provider=tracer.provider) as client:
        await client.generate("x", max_tokens=1)
        async for _ in client.stream("x", max_tokens=2):
            pass
        with pytest.raises(LoramuxError):
            await client.generate("x", max_tokens=0)
    async with asyncio.timeout(60):
        while len(tracer.kept.get_finished_spans()) < 3:  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.01)
    spans = tracer.kept.get_finished_spans()
    codes = [(span.attributes or {})["rpc.response.status_code"] for span in spans]
    assert codes == ["OK", "OK", "INVALID_ARGUMENT"]
    for span in spans:
        trace_id, span_id = ids_of(span)
        found = await asyncio.to_thread(observed.collector.of, trace_id)
        (call,) = [each for each in found if "rpc.method" in each.attributes]
        assert call.parent == span_id


def test_what_the_program_does_not_record_the_server_does_not_either(
    observed: Observed, key: str
) -> None:
    provider = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    with observed.server.client(key=key, tracer_provider=provider) as client:
        client.generate("x", max_tokens=1, request_id="dark")
    with observed.server.client(key=key) as client:  # no provider: a trace of the server's own
        client.generate("x", max_tokens=1, request_id="light")
    light, dark = (
        line["trace_id"]
        for name in ("light", "dark")
        for line in observed.calls()
        if line.get("generation_id") == name
    )
    observed.collector.of(light)
    assert dark not in {span.trace_id for span in observed.collector.spans}


def test_a_collector_that_does_not_answer_costs_no_call_anything(tmp_path: Path) -> None:
    endpoint, listener = deaf_endpoint()
    arguments = ("--tracing-endpoint", endpoint)
    settings = {
        "OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_BSP_MAX_QUEUE_SIZE": "16",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8", "OTEL_EXPORTER_OTLP_TIMEOUT": "30",
    }  # fmt: skip
    with listener, FakeServer(tmp_path, *arguments, environment=settings) as server:
        with server.client() as client:
            for number in range(40):
                assert len(client.generate([number], max_tokens=2).completions) == 1
        spans = server.metrics()
        assert spans.get('loramux_spans_total{outcome="exported"}', 0.0) == 0
        assert spans['loramux_spans_total{outcome="dropped"}'] > 0
        begin = time.monotonic()
    assert time.monotonic() - begin < 60  # that it ends well, the server's `with` says
    assert "http" not in server.log.read_text().replace("huggingface", "")


IMPORTED = """
import pathlib
with pathlib.Path(__file__).with_name("who").open("a") as file:
    file.write("somebody\\n")
raise ImportError("nobody asked for it")
"""


def test_a_server_without_traces_never_loads_opentelemetry(tmp_path: Path) -> None:
    package = tmp_path / "opentelemetry"
    package.mkdir()
    (package / "__init__.py").write_text(IMPORTED)
    with FakeServer(tmp_path / "server", environment={"PYTHONPATH": str(tmp_path)}) as server:
        program = f"""
from loramux import Client
with Client({server.target!r}, retries=False) as client:
    client.generate([1], max_tokens=1)
"""
        environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert not (package / "who").exists()
    missing = FakeServer(
        tmp_path / "other",
        "--tracing-endpoint",
        "http://h:1",
        environment={"PYTHONPATH": str(tmp_path)},
    )
    with pytest.raises(AssertionError, match=r"pip install .*\[tracing\]"):
        missing.start()
    assert (package / "who").exists()  # so it would have been noticed
