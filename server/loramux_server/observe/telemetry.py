"""Tracing with OpenTelemetry. Imported only if traces are enabled.

The SDK's settings (sampler, limits, headers, certificates, resource, …) come from its OTEL_…
variables. Calls never wait for the collector: spans beyond the queue's limit are dropped and
counted.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter

from loramux import __version__
from loramux_server.config import ConfigError
from loramux_server.observe.span_queue import SpanQueue
from loramux_server.observe.spans import NO_ATTRIBUTES, Attributes

LAST_SPANS = 2.0
"""Seconds at shutdown for exporting the remaining spans."""

_W3C = TraceContextTextMapPropagator()
Metadata = Iterable[tuple[str, str | bytes]]


class RecordedSpan:
    """An OpenTelemetry span; see `spans.Span`."""

    __slots__ = ("_offset", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: OtelSpan, offset: int) -> None:
        """Wrap `span`; `offset` is the wall clock minus the monotonic clock, in ns."""
        self._tracer = tracer
        self._span = span
        self._offset = offset

    @property
    def is_recorded(self) -> bool:
        """Whether the span is sampled."""
        return self._span.is_recording()

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits; empty if there is none."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    def child(
        self, name: str, begin: float, attributes: Attributes = NO_ATTRIBUTES
    ) -> "RecordedSpan":
        """Return a child span that began at `begin`."""
        span = self._tracer.start_span(
            name,
            set_span_in_context(self._span, Context()),
            attributes=_known(attributes),
            start_time=self._nanoseconds(begin),
        )
        return RecordedSpan(self._tracer, span, self._offset)

    def end(self, end: float, attributes: Attributes = NO_ATTRIBUTES, *, error: str = "") -> None:
        """End the span, once, successfully or with `error`."""
        if self.is_recorded:
            self._span.set_attributes(_known(attributes))
            if error:
                self._span.set_attribute("error.type", error)
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._nanoseconds(end))

    def _nanoseconds(self, moment: float) -> int:
        return self._offset + round(moment * 1e9)


class Telemetry:
    """Creates the spans of calls, and exports them to a collector."""

    def __init__(
        self, exporter: SpanExporter, spans: Counter, *, patience: float = LAST_SPANS
    ) -> None:
        """Initialize.

        Args:
            exporter: Sends spans.
            spans: Counts spans by outcome.
            patience: Seconds at shutdown for exporting the remaining spans.

        Raises:
            ConfigError: A setting of the queue in the environment is invalid.
        """
        # OpenTelemetry's own log lines would quote callers' data, and repeat for every span.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._queue = SpanQueue(exporter, spans)
        self._patience = patience
        # The environment takes precedence.
        resource = Resource.create({"service.name": "loramux", "service.version": __version__})
        provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        provider.add_span_processor(self._queue)
        self._tracer = provider.get_tracer("loramux", __version__)

    def call(self, method: str, metadata: Metadata, begin: float) -> RecordedSpan:
        """Return the span of a call of `method`, a child of the one in its `metadata`, if any.

        Metadata that is not a valid W3C trace context, or is too long for one, is ignored.
        """
        carrier: dict[str, list[str]] = {}
        for key, value in metadata:
            if key in _W3C.fields and isinstance(value, str):
                carrier.setdefault(key, []).append(value)
        offset = time.time_ns() - time.monotonic_ns()
        service, _, name = method.rpartition(".")
        path = f"{service}/{name}"
        span = self._tracer.start_span(
            path,
            _W3C.extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": path},
            start_time=offset + round(begin * 1e9),
        )
        return RecordedSpan(self._tracer, span, offset)

    async def close(self) -> None:
        """Export the remaining spans, for up to `patience` seconds."""
        await asyncio.to_thread(self._queue.close, self._patience)


def exporter_to(endpoint: str) -> SpanExporter:
    """Return an OTLP exporter to the collector at `endpoint`, a URL.

    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL or OTEL_EXPORTER_OTLP_PROTOCOL chooses between gRPC, the
    default, and HTTP.

    Raises:
        ConfigError: The environment names another protocol, or has an invalid setting.
    """
    variables = (OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL)
    found = [(name, os.environ[name]) for name in variables if os.environ.get(name)]
    name, protocol = found[0] if found else ("", "grpc")
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter(endpoint)
        if protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http import trace_exporter

            has_path = "/" in endpoint.partition("://")[2].rstrip("/")
            url = endpoint if has_path else f"{endpoint.rstrip('/')}/v1/traces"
            return trace_exporter.OTLPSpanExporter(url)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"--tracing-endpoint {endpoint}: {error}") from None
    raise ConfigError(f"{name} is {protocol!r}; expected grpc or http/protobuf")


def _known(attributes: Attributes) -> dict[str, str | int | float | bool | list[str]]:
    return {name: value for name, value in attributes.items() if value is not None}
