"""What a defect of a handler looks like from outside, over a real socket."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from loramux.v1 import generation_pb2
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux_server.access.caller import LOCAL_ADMIN, enter
from loramux_server.inference import open_inference_pb2 as theirs
from loramux_server.transport.rpc import Calls, Context, generic_handler
from loramux_server.transport.slow_readers import SlowReaderGuard

SECRET = "a bug at 0x7f00 in /srv/private"


class Defective:
    """Fails as nobody expects."""

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        raise RuntimeError(SECRET)

    async def StreamGenerate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        yield generation_pb2.StreamGenerateResponse()
        raise RuntimeError(SECRET)


class Everybody(grpc.aio.ServerInterceptor):
    """Lets all calls pass, as the administrator's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        enter(LOCAL_ADMIN)
        return await continuation(handler_call_details)


@asynccontextmanager
async def defective() -> AsyncIterator[Any]:
    server = grpc.aio.server(interceptors=[Everybody()])
    service = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
    reader_guard = SlowReaderGuard(30.0, lambda: None)
    server.add_generic_rpc_handlers((generic_handler(service, Defective(), Calls(), reader_guard),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GenerationServiceStub(channel)
    await server.stop(None)


async def ended(call: Any) -> grpc.aio.AioRpcError:
    """Return with what `call` fails, which may have answered something before."""
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            _ = [response async for response in call]
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_of_a_defect_callers_get_a_number_and_the_log_the_text(
    caplog: pytest.LogCaptureFixture, is_stream: bool
) -> None:
    request = generation_pb2.GenerateRequest()
    async with defective() as stub:
        call = (stub.StreamGenerate if is_stream else stub.Generate)(request, timeout=60)
        error = await ended(call)
    said = error.details() or ""
    assert error.code() is grpc.StatusCode.INTERNAL
    assert re.fullmatch("internal error, incident [0-9a-f]{16}", said)
    assert SECRET not in repr(error.trailing_metadata())
    assert said.rpartition(" ")[2] in caplog.text
    assert SECRET in caplog.text


class Streams:
    """Answers each request of a stream, but for one that fails as nobody expects."""

    def __getattr__(self, name: str) -> Any:
        return self._unused

    async def _unused(self, request: Any, context: Context) -> Any:
        raise AssertionError

    async def ModelStreamInfer(
        self, request: theirs.ModelInferRequest, context: Context
    ) -> AsyncIterator[theirs.ModelStreamInferResponse]:
        if not request.id:
            raise RuntimeError(SECRET)
        yield theirs.ModelStreamInferResponse(error_message=request.id)


@asynccontextmanager
async def streaming(calls: Calls) -> AsyncIterator[Any]:
    """Yield a stream to a server that counts `calls`; nothing was sent on it yet."""
    server = grpc.aio.server(interceptors=[Everybody()])
    service = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    reader_guard = SlowReaderGuard(30.0, lambda: None)
    server.add_generic_rpc_handlers((generic_handler(service, Streams(), calls, reader_guard),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=theirs.ModelInferRequest.SerializeToString,
            response_deserializer=theirs.ModelStreamInferResponse.FromString,
        )(timeout=60)
    await server.stop(None)


async def reported(stream: Any, name: str) -> str:
    """Send a request called `name` and return the answer."""
    await stream.write(theirs.ModelInferRequest(id=name))
    return str((await stream.read()).error_message)


async def test_a_defect_of_one_request_of_a_stream_ends_it_with_a_number() -> None:
    async with streaming(Calls()) as stream:
        assert await reported(stream, "first") == "first"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reported(stream, "")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in repr(caught.value)


async def test_the_end_of_a_server_does_not_wait_for_a_stream_without_requests() -> None:
    calls = Calls()
    async with streaming(calls) as stream:
        assert await reported(stream, "first") == "first"
        assert await calls.close(60.0)
        # Who asks for more is told to try again, as with a call.
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as caught:
            await reported(stream, "second")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
