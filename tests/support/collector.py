"""A collector of traces: OpenTelemetry's own service, on a socket."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.support.polling import eventually


def plain(value: common_pb2.AnyValue) -> Any:
    """Return what an attribute holds."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


class Got:
    """A span that arrived."""

    def __init__(self, span: trace_pb2.Span, resource: dict[str, Any]) -> None:
        self.name = span.name
        self.trace_id = span.trace_id.hex()
        self.id = span.span_id.hex()
        self.parent = span.parent_span_id.hex()
        self.kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
        self.begin, self.end = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
        self.has_failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
        self.attributes = {one.key: plain(one.value) for one in span.attributes}
        self.resource = resource
        self.text = str(span)
        """All of it, for who looks for what should not be there."""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes in spans, in a `with`."""

    def __init__(self) -> None:
        self.spans: list[Got] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            reported = {one.key: plain(one.value) for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [Got(span, reported) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, is_there: Callable[[list[Got]], bool]) -> list[Got]:
        """Return the spans, as soon as they are what a test waits for."""
        assert eventually(lambda: is_there(self.spans)), [span.name for span in self.spans]
        return list(self.spans)

    def of(self, trace_id: str) -> list[Got]:
        """Return the spans of a trace, once that of the call is there, which ends last."""
        found = self.wait(
            lambda spans: any(
                s.trace_id == trace_id and "rpc.method" in s.attributes for s in spans
            )
        )
        return [span for span in found if span.trace_id == trace_id]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def deaf_endpoint() -> tuple[str, socket.socket]:
    """Return where connections are made and nobody ever answers, until the socket is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    return f"http://127.0.0.1:{listener.getsockname()[1]}", listener
