"""gRPC handlers for the services: open calls, malformed requests, adapter names, error statuses.

Handlers are built from the proto descriptors, not by the generated `add_…_to_server`, where a
request that cannot be parsed becomes UNKNOWN with the text of an exception. Here it becomes
INVALID_ARGUMENT.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from loramux._wire import ERROR_KEY
from loramux.errors import InternalError, InvalidArgumentError, LoramuxError, UnavailableError
from loramux.v1 import errors_pb2
from loramux_server.access.caller import caller
from loramux_server.access.naming import settle_name
from loramux_server.access.rules import RULES
from loramux_server.observe.audited_actions import targets
from loramux_server.observe.call_record import REQUEST_ID_KEY, current, note
from loramux_server.transport.multiplexing import multiplexed
from loramux_server.transport.slow_readers import SlowReaderGuard

STATUS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Delay before gRPC's own retries, if enabled (gRFC A6)."""
DOMAIN = "loramux"
MAX_ON_STREAM = 256
"""Requests in progress on one stream; further ones are not read."""

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Service(Protocol):
    """Implements one service of the protos: it has a method for each RPC, of the same name."""

    descriptor: ServiceDescriptor


class Calls:
    """Counts the calls in progress, and refuses new ones after `close`."""

    def __init__(self) -> None:
        self._num_open = 0
        self._is_closed = False
        self._ended = asyncio.Event()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a call for the duration of the block.

        Raises:
            UnavailableError: The server is shutting down.
        """
        if self._is_closed:
            raise UnavailableError(
                "the server is shutting down; try again",
                reason="ENGINE_UNAVAILABLE",
                retry_delay=1.0,
            )
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1
            self._ended.set()

    async def close(self, patience: float) -> bool:
        """Refuse new calls; return whether those in progress ended within `patience` seconds."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._num_open:
                    self._ended.clear()
                    await self._ended.wait()
        return not self._num_open


def generic_handler(
    service: ServiceDescriptor, implementation: object, calls: Calls, reader_guard: SlowReaderGuard
) -> grpc.GenericRpcHandler:
    """Return handlers for all methods of `service`, which call those of `implementation`."""
    handlers = {
        method.name: _method_handler(
            method, getattr(implementation, method.name), calls, reader_guard
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


class _Malformed:
    """Stands for a request that cannot be parsed."""


def _method_handler(
    method: MethodDescriptor,
    behaviour: Callable[..., Any],
    calls: Calls,
    reader_guard: SlowReaderGuard,
) -> "grpc.RpcMethodHandler[Any, Any]":
    request_class = GetMessageClass(method.input_type)

    def parse(raw: bytes) -> Message | _Malformed:
        try:
            return request_class.FromString(raw)
        except DecodeError:
            return _Malformed()

    if method.client_streaming and method.server_streaming:
        handler = _both_streams(behaviour, method, calls, reader_guard)
        return grpc.stream_stream_rpc_method_handler(handler, parse, _serialize)
    if method.client_streaming:
        handler = _client_stream(behaviour, method, calls)
        return grpc.stream_unary_rpc_method_handler(handler, parse, _serialize)
    if method.server_streaming:
        handler = _server_stream(behaviour, method, calls, reader_guard)
        return grpc.unary_stream_rpc_method_handler(handler, parse, _serialize)
    handler = _unary(behaviour, method, calls)
    return grpc.unary_unary_rpc_method_handler(handler, parse, _serialize)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _unary(
    behaviour: Callable[..., Awaitable[Message]], method: MethodDescriptor, calls: Calls
) -> Any:  # noqa: ANN401
    async def handle(request: Message | _Malformed, context: Context) -> Message:
        try:
            with calls.one_more():
                return await behaviour(_checked(request, method), context)
        except Exception as error:
            await abort(context, error, method.full_name)

    return handle


def _server_stream(
    behaviour: Callable[..., AsyncGenerator[Message, None]],
    method: MethodDescriptor,
    calls: Calls,
    reader_guard: SlowReaderGuard,
) -> Any:  # noqa: ANN401
    async def handle(request: Message | _Malformed, context: Context) -> None:
        try:
            with ExitStack() as under_way:
                under_way.enter_context(calls.one_more())
                responses = behaviour(_checked(request, method), context)
                await reader_guard.send(responses, context.write, on_lost=under_way.close)
        except Exception as error:
            await abort(context, error, method.full_name)

    return handle


def _client_stream(
    behaviour: Callable[..., Awaitable[Message]], method: MethodDescriptor, calls: Calls
) -> Any:  # noqa: ANN401
    async def handle(requests: AsyncIterator[Message | _Malformed], context: Context) -> Message:
        async def checked() -> AsyncIterator[Message]:
            async for request in requests:
                yield _checked(request, method)

        try:
            with calls.one_more():
                return await behaviour(checked(), context)
        except Exception as error:
            await abort(context, error, method.full_name)

    return handle


def _both_streams(
    behaviour: Callable[..., AsyncGenerator[Message, None]],
    method: MethodDescriptor,
    calls: Calls,
    reader_guard: SlowReaderGuard,
) -> Any:  # noqa: ANN401
    """Return the handler of a stream on which each request counts as a call of its own.

    A stream without a request in progress does not count: shutdown does not wait for it.
    """

    async def handle(requests: AsyncIterator[Message | _Malformed], context: Context) -> None:
        async def checked() -> AsyncIterator[Message]:
            async for request in requests:
                yield _checked(request, method)

        async def answers(request: Message) -> AsyncGenerator[Message, None]:
            with calls.one_more():
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response

        try:
            responses = multiplexed(checked(), answers, MAX_ON_STREAM)
            await reader_guard.send(responses, context.write, on_lost=lambda: None)
        except Exception as error:
            await abort(context, error, method.full_name)

    return handle


def _checked(request: Message | _Malformed, method: MethodDescriptor) -> Message:
    if isinstance(request, _Malformed):
        raise InvalidArgumentError(
            f"the request is not a valid {method.input_type.full_name}",
            reason="MALFORMED_REQUEST",
        )
    rule = RULES[method.full_name]
    try:
        if rule.fields:  # otherwise there may be no caller
            settle_name(request, rule, caller())
    finally:
        if target := targets(method.full_name, request):
            note(target=target)
    return request


async def abort(context: Context, error: Exception, method: str) -> NoReturn:
    """End a call of `method` with the status for `error`."""
    if isinstance(error, grpc.aio.BaseError):  # gRPC's own: the call has ended
        raise error
    if not isinstance(error, LoramuxError):
        incident = secrets.token_hex(8)
        _log.error("incident %s in %s", incident, method, exc_info=error)
        error = InternalError(f"internal error, incident {incident}", reason="INTERNAL")
    metadata = status_metadata(error)
    if record := current():
        record.reason = error.reason or "UNSPECIFIED"
        metadata = ((REQUEST_ID_KEY, record.request_id), *metadata)
    await context.abort(error.code, str(error), metadata)


def status_metadata(error: LoramuxError) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata with the details of `error`.

    It has `google.rpc` details for any gRPC tool, and our own smaller message for clients without
    them.
    """
    pushback: tuple[tuple[str, str | bytes], ...] = ()
    reason = error.reason or "UNSPECIFIED"
    detail = errors_pb2.ErrorDetail(
        reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}"),
        field=error.field,
        quota=error.quota,
    )
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error)
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.quota:
        exceeded = error_details_pb2.QuotaFailure.Violation(
            subject=error.quota, description=str(error)
        )
        status.details.add().Pack(error_details_pb2.QuotaFailure(violations=[exceeded]))
    if error.retry_delay is not None:
        delay = Duration(
            seconds=int(error.retry_delay), nanos=round(error.retry_delay % 1 * 1e9) % 10**9
        )
        detail.retry_delay.CopyFrom(delay)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        pushback = ((PUSHBACK_KEY, str(round(1000 * error.retry_delay))),)
    return (
        *pushback,
        (STATUS_KEY, status.SerializeToString()),
        (ERROR_KEY, detail.SerializeToString()),
    )
