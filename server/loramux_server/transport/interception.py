"""Wraps gRPC handlers of all four kinds in a context manager."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc

Handler = Any  # gRPC's own type does not distinguish the four kinds
Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""(request streams, response streams) -> gRPC's attribute and factory for such handlers."""


def around(
    handler: Handler, block: Callable[[Context], AbstractAsyncContextManager[None]]
) -> Handler:
    """Return `handler` with each call wrapped in a `block` of its own; None stays None."""
    if handler is None:
        return None
    name, make = _KINDS[handler.request_streaming, handler.response_streaming]
    behaviour = _within(getattr(handler, name), block)
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _within(
    behaviour: Callable[..., Any], block: Callable[[Context], AbstractAsyncContextManager[None]]
) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: object, context: Context) -> AsyncIterator[object]:
            async with block(context):
                async for response in behaviour(request, context):
                    yield response

        return stream

    async def call(request: object, context: Context) -> object:
        async with block(context):
            return await behaviour(request, context)

    return call
