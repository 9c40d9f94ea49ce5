"""Spans of calls: their parents, what is recorded of them, and what a bad collector can do."""

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from loramux_server.config import ConfigError
from loramux_server.metrics.series import Metrics
from loramux_server.observe.telemetry import Telemetry, exporter_to
from tests.support.collector import deaf_endpoint

METHOD = "loramux.v1.GenerationService.Generate"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PATIENCE = 0.3
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Kept(InMemorySpanExporter):
    """Keeps spans, also when it is shut down."""


class Deaf(SpanExporter):
    """Takes nothing until it is shut down."""

    def __init__(self) -> None:
        self.given_up = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.given_up.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.given_up.set()


class Moody(SpanExporter):
    """Takes spans when it is well."""

    def __init__(self) -> None:
        self.is_well = True
        self._asked = threading.Event()

    def was_asked(self) -> None:
        """Return when it got spans once more."""
        assert self._asked.wait(60)
        self._asked.clear()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.SUCCESS if self.is_well else SpanExportResult.FAILURE
        self._asked.set()
        return result

    def shutdown(self) -> None:
        pass


class Broken(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("a defect")


class Made:
    """Telemetry, and what came of it."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.metrics = Metrics()
        self.telemetry = Telemetry(exporter, self.metrics.spans, patience=PATIENCE)

    def call(self, *metadata: tuple[str, str | bytes]) -> str:
        """Make the span of a call, end it, and return the id of its trace."""
        span = self.telemetry.call(METHOD, metadata, time.monotonic())
        span.end(time.monotonic())
        return span.trace_id

    def count(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("loramux_spans_total", labels) or 0.0


async def spans_of(*metadata: tuple[str, str | bytes]) -> tuple[str, list[ReadableSpan]]:
    """Return the id of the trace of a call with `metadata`, and what was exported of it."""
    kept = Kept()
    made = Made(kept)
    trace_id = made.call(*metadata)
    await made.telemetry.close()
    return trace_id, list(kept.get_finished_spans())


async def test_a_call_is_below_the_span_that_its_metadata_name() -> None:
    trace_id, (span,) = await spans_of(("traceparent", SAMPLED), ("tracestate", "a=1,b=2"))
    assert trace_id == TRACE
    assert span.parent
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.parent.trace_state.to_header() == "a=1,b=2"
    assert span.name == "loramux.v1.GenerationService/Generate"


async def test_a_parent_that_is_not_recorded_is_not_here_either() -> None:
    trace_id, spans = await spans_of(("traceparent", SAMPLED[:-1] + "0"))
    assert trace_id == TRACE  # the log names it all the same
    assert spans == []


@pytest.mark.parametrize("value", [
    "", "x", SAMPLED[:-1], SAMPLED.upper(), f"ff{SAMPLED[2:]}", SAMPLED + "-more",
    f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{PARENT}",
    "0" * 4096, SAMPLED.replace("-", "_"), f"00-{TRACE}-{PARENT}-0g", "🦙",
])  # fmt: skip
async def test_what_is_no_traceparent_begins_a_trace(value: str) -> None:
    trace_id, (span,) = await spans_of(("traceparent", value))
    assert span.parent is None
    assert trace_id not in ("", TRACE)


@pytest.mark.parametrize("value", ["=", "A=1", "a=1,a=2", "a=" + "x" * 512, "a=1\x00"])
async def test_what_is_no_tracestate_is_passed_over(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    trace_id, (span,) = await spans_of(("traceparent", SAMPLED), ("tracestate", value))
    assert trace_id == TRACE
    assert not span.context.trace_state
    assert caplog.text == ""  # which would be a way to write to the log


async def test_bytes_and_other_metadata_are_none_of_its_business() -> None:
    trace_id, (span,) = await spans_of(
        ("authorization", "Bearer x"), ("traceparent", b"\xff"), ("baggage", "a=1")
    )
    assert span.parent is None
    assert trace_id


@pytest.mark.parametrize(("sampler", "count"), [("always_off", 0), ("parentbased_always_on", 1)])
async def test_the_sampler_of_the_environment_decides_for_calls_without_a_parent(
    monkeypatch: pytest.MonkeyPatch, sampler: str, count: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    assert len((await spans_of())[1]) == count


async def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (span,) = await spans_of()
    assert span.resource.attributes["service.name"] == "loramux"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "lora-eu")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    _, (span,) = await spans_of()
    assert span.resource.attributes["service.name"] == "lora-eu"
    assert span.resource.attributes["deployment.environment.name"] == "test"


async def test_what_waits_for_the_collector_is_bounded_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    made = Made(Deaf())
    begin = time.monotonic()
    for _ in range(100):
        made.call()
    assert time.monotonic() - begin < 30  # nothing like the minute that the exporter takes
    # The queue, and up to a batch that the exporter had taken out of it.
    assert 100 - 8 - 4 <= made.count("dropped") <= 100 - 8
    await made.telemetry.close()
    assert made.count("failed") + made.count("dropped") == 100


async def test_a_collector_that_never_answers_holds_up_the_end_for_a_moment_only() -> None:
    made = Made(Deaf())
    made.call()
    begin = time.monotonic()
    await made.telemetry.close()
    assert time.monotonic() - begin < PATIENCE + 30
    assert made.count("failed") == 1


@pytest.mark.parametrize("is_there", [True, False], ids=["deaf", "dead"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_so_it_is_with_real_exporters(
    protocol: str, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    endpoint, listener = deaf_endpoint()
    if not is_there:
        listener.close()
    with listener:
        made = Made(exporter_to(endpoint))
        made.call()
        async with asyncio.timeout(2 * PATIENCE + 60):
            await made.telemetry.close()
    assert made.count("exported") == 0


async def test_an_exporter_that_raises_is_counted_and_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    made = Made(Broken())
    for _ in range(3):
        made.call()
    await made.telemetry.close()
    assert made.count("failed") == 3
    assert "a defect" not in caplog.text
    (warning,) = caplog.messages
    assert "is failing (RuntimeError)" in warning


@pytest.mark.parametrize(("name", "value", "message"), [
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "--tracing-endpoint http://h:1: "),
])  # fmt: skip
def test_what_is_wrong_with_the_environment_is_said_at_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        exporter_to("http://h:1")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "\u0664"])
def test_a_queue_has_a_positive_size(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", value)
    with pytest.raises(ConfigError, match=r"OTEL_BSP_MAX_QUEUE_SIZE is .*positive"):
        Made(Kept())


async def test_a_collector_that_is_back_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    moody = Moody()
    made = Made(moody)
    with caplog.at_level("INFO"):
        for is_well in (True, False, False, True, True):
            moody.is_well = is_well
            made.call()
            await asyncio.to_thread(moody.was_asked)
    await made.telemetry.close()
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert (made.count("exported"), made.count("failed")) == (3, 2)


def test_nothing_of_it_goes_on_in_a_fork() -> None:
    made = Made(Kept())
    made.call()
    with warnings.catch_warnings(action="ignore"):  # that there are threads is the point
        child = os.fork()
    if not child:
        os._exit(threading.active_count() - 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(made.telemetry.close())
