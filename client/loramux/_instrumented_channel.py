"""A channel wrapper that adds metadata (such as the API key) and OpenTelemetry spans to calls.

OpenTelemetry is optional and not imported here: a program that uses it has loaded it already.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import grpc

from loramux import __version__
from loramux._routing.aio_routed import AioRoutedChannel, AioRoutedStream
from loramux._routing.routed import Metadata, RoutedChannel, RoutedStream

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

Ended: TypeAlias = Callable[[str, grpc.StatusCode], None]
"""Called after a call ended with its method, `PACKAGE.SERVICE/METHOD`, and its status."""
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class InstrumentedChannel:
    """A channel that adds metadata to all calls, and a span to each if there is OpenTelemetry."""

    def __init__(
        self,
        channel: Any,  # noqa: ANN401 - any that makes calls
        metadata: Metadata,
        provider: "TracerProvider | None",
        ended: Ended | None = None,
    ) -> None:
        """Wrap `channel`; without a provider, each call uses the global one.

        `ended` requires an asynchronous channel.
        """
        self._channel = channel
        self._metadata = metadata
        self._provider = provider
        self._ended = ended

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the channel has
        made = getattr(self._channel, name)
        return self._methods(made) if name in _KINDS else made

    def to(self, reference: str) -> "InstrumentedChannel":
        """Return a channel that sends every call to one server; see `sticky_channel`."""
        channel = self._channel
        if isinstance(channel, RoutedChannel | AioRoutedChannel):
            channel = channel.to(reference)
        return self._over(channel, self._metadata)

    def with_metadata(self, metadata: Metadata) -> "InstrumentedChannel":
        """Return a channel that also adds `metadata` to every call."""
        return self._over(self._channel, (*self._metadata, *metadata))

    async def each(self) -> "list[InstrumentedChannel]":
        """Return a channel for each single server; only for asynchronous channels."""
        if not isinstance(self._channel, AioRoutedChannel):
            return [self]
        found = await self._channel.each()
        return [self._over(channel, self._metadata) for channel in found] or [self]

    def _over(self, channel: Any, metadata: Metadata) -> "InstrumentedChannel":  # noqa: ANN401
        return InstrumentedChannel(channel, metadata, self._provider, self._ended)

    def _methods(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(path: str, *arguments: object, **options: object) -> Callable[..., Any]:
            call = make(path, *arguments, **options)
            name = path.removeprefix("/")

            def begin(
                request: object, *, timeout: float | None = None, metadata: Metadata = ()
            ) -> object:
                metadata = (*self._metadata, *metadata)
                if "opentelemetry.trace" not in sys.modules:
                    answer = call(request, timeout=timeout, metadata=metadata)
                else:
                    answer = self._traced(call, name, request, timeout, metadata)
                return _observed(answer, partial(self._ended, name)) if self._ended else answer

            return begin

        return made

    def _traced(
        self,
        call: Callable[..., Any],
        name: str,
        request: object,
        timeout: float | None,
        metadata: Metadata,
    ) -> object:
        from opentelemetry.trace import SpanKind, get_tracer, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = get_tracer("loramux", __version__, self._provider).start_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
        )
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
        metadata = (*metadata, *carrier.items())
        try:
            answer = call(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            _end(span, _code(error))
            raise
        except BaseException:
            _end(span, grpc.StatusCode.UNKNOWN)
            raise
        return _observed(answer, partial(_end, span))


Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)


def sticky_channel(channel: Channel, reference: str) -> Channel:
    """Return a channel that sends every call to one server: the one with affinity to an adapter.

    Calls that depend on each other, such as the parts of an upload, have to reach the same server.
    """
    return (
        cast(Channel, channel.to(reference))
        if isinstance(channel, InstrumentedChannel)
        else channel
    )


def _observed(answer: object, end: Callable[[grpc.StatusCode], None]) -> object:
    """Return the started call `answer`, or a wrapper of it, such that `end` gets its status."""
    if inspect.iscoroutine(answer):
        return _awaited(answer, end)
    if isinstance(answer, grpc.aio.Call | AioRoutedStream):
        answer.add_done_callback(lambda ended: end(_final_code(ended.code())))
    elif not isinstance(answer, grpc.Call | RoutedStream):
        end(grpc.StatusCode.OK)
    elif not answer.add_callback(lambda: end(answer.code())):
        end(answer.code())
    return answer


async def _awaited(
    answer: Coroutine[Any, Any, object], end: Callable[[grpc.StatusCode], None]
) -> object:
    """Await `answer`, pass its status to `end`, and return the result."""
    code = grpc.StatusCode.UNKNOWN
    try:
        found = await answer
        code = grpc.StatusCode.OK
        return found
    except grpc.RpcError as error:
        code = _code(error)
        raise
    except asyncio.CancelledError:
        code = grpc.StatusCode.CANCELLED
        raise
    finally:
        end(code)


def _end(span: "Span", code: grpc.StatusCode) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("rpc.response.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute("error.type", code.name)
        # Without the status message, which may contain parts of the request.
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    is_call = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    return error.code() if is_call else grpc.StatusCode.UNKNOWN


def _final_code(code: Coroutine[Any, Any, grpc.StatusCode]) -> grpc.StatusCode:
    """Return the status of a call that has ended, without awaiting the coroutine `code`."""
    try:
        code.send(None)
    except StopIteration as ended:
        found: grpc.StatusCode = ended.value
        return found
    code.close()
    return grpc.StatusCode.UNKNOWN
