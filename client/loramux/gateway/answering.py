"""Answering one request, as one object or as a stream, until the caller disconnects."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from loramux.errors import LoramuxError
from loramux.gateway.answers import MANY_POSITIONS, adapter_header
from loramux.gateway.backend import Backend, Chunks
from loramux.gateway.caller import Caller
from loramux.gateway.events import EVENTS
from loramux.gateway.refusal import json_response
from loramux.v1 import generation_pb2

T = TypeVar("T")


class StreamFormatter(Protocol):
    """The form of a stream in the API that was called."""

    def is_long(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bool:
        """Return whether `events` would block the event loop for too long."""

    def events(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bytes:
        """Return the events for the next chunk, of prompt number `place`; may be empty."""

    def end(self, usages: Sequence[generation_pb2.Usage]) -> bytes:
        """Return the last events of a stream; `usages` has one entry for each prompt."""

    def failure(self, error: LoramuxError) -> bytes:
        """Return the last events of a stream that failed."""


class ResponseFormatter(StreamFormatter, Protocol):
    """The form of an answer, as one object and as a stream."""

    def whole(self, responses: Sequence[generation_pb2.GenerateResponse]) -> dict[str, object]:
        """Return the answer as one object; `responses` are in the order of the prompts."""


class CancelOnDisconnect:
    """An ASGI response that is cancelled, with its calls, when the caller disconnects."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the response until it ends or the caller disconnects; errors of it are raised."""
        answering = asyncio.ensure_future(self._answer(scope, receive, send))
        disconnecting = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answering, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_answered = answering.done()
            for task in (answering, disconnecting):
                task.cancel()
            await asyncio.gather(answering, disconnecting, return_exceptions=True)
        if is_answered:
            answering.result()


@dataclass(frozen=True, slots=True)
class Streaming:
    """A request that is answered with a stream."""

    backend: Backend
    caller: Caller
    requests: Sequence[generation_pb2.GenerateRequest]
    answers: StreamFormatter
    seconds: float | None
    """Timeout of each call; None for the default."""

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the events of each chunk."""
        async with aclosing(self.chunks()) as chunks:
            await _send_events(chunks, self.answers, self.caller, send)

    def chunks(self) -> AsyncGenerator[tuple[int, generation_pb2.StreamGenerateResponse], None]:
        """Yield the chunks of all answers as they arrive, each with the index of its prompt."""
        return _merged(
            [self.backend.stream(each, self.caller, self.seconds) for each in self.requests]
        )


@dataclass(frozen=True, slots=True)
class Answering(Streaming):
    """A request that is answered with one object or a stream."""

    answers: ResponseFormatter

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        responses = await _all(
            [self.backend.generate(each, self.caller, self.seconds) for each in self.requests]
        )
        headers = headers_by(self.caller, responses[0].adapters)
        is_long = sum(len(each.prompt_logprobs) for each in responses) >= MANY_POSITIONS
        answer = await _run(lambda: json_response(self.answers.whole(responses), headers), is_long)
        await answer(scope, receive, send)


async def _send_events(
    chunks: AsyncIterator[tuple[int, generation_pb2.StreamGenerateResponse]],
    answers: StreamFormatter,
    caller: Caller,
    send: Send,
) -> None:
    """Send the events of `chunks`, each of which comes with the index of its prompt.

    The status line waits for the first chunk, so that a request that the server refuses gets an
    HTTP error.
    """
    place, chunk = await anext(chunks)
    headers = headers_by(caller, chunk.adapters) | EVENTS
    await send({
        "type": "http.response.start",
        "status": 200,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    })  # fmt: skip
    usages = []
    try:
        while True:
            is_long = answers.is_long(place, chunk)
            events = await _run(partial(answers.events, place, chunk), is_long)
            if events:
                # Returns once the connection's write buffer has room.
                await _send(send, events)
            if chunk.HasField("usage"):
                usages.append(chunk.usage)
            place, chunk = await anext(chunks)
    except StopAsyncIteration:
        await _send(send, answers.end(usages))
    except LoramuxError as error:
        await _send(send, answers.failure(error))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def headers_by(
    caller: Caller, adapters: Sequence[generation_pb2.AdapterIdentity]
) -> dict[str, str]:
    """Return the response headers for `caller`, answered by `adapters`."""
    named = adapter_header(adapters)
    return caller.returned | ({"x-loramux-adapter": named} if named else {})


async def _run(make: Callable[[], T], is_long: bool) -> T:
    """Return the result of `make`; one that `is_long` runs in a thread, not on the event loop."""
    return await asyncio.to_thread(make) if is_long else make()


async def _disconnected(receive: Receive) -> None:
    """Return when the caller disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _all(
    calls: Sequence[Awaitable[generation_pb2.GenerateResponse]],
) -> list[generation_pb2.GenerateResponse]:
    """Return the results of all `calls`; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _merged(
    streams: Sequence[Chunks],
) -> AsyncGenerator[tuple[int, generation_pb2.StreamGenerateResponse], None]:
    """Yield the chunks of all `streams` as they arrive, each with the index of its stream.

    A stream is read again only after its last chunk was consumed.
    """
    if len(streams) == 1:  # needs no task for each chunk
        async with aclosing(streams[0]) as only:
            async for chunk in only:
                yield 0, chunk
        return
    waiting: dict[asyncio.Future[Any], int] = {}

    def read(place: int) -> None:
        waiting[asyncio.ensure_future(_next(streams[place]))] = place

    try:
        for place in range(len(streams)):
            read(place)
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                place = waiting.pop(task)
                found = task.result()
                if found is not None:
                    yield place, found
                    read(place)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: Chunks) -> generation_pb2.StreamGenerateResponse | None:
    """Return the next chunk, or None after the last."""
    return await anext(stream, None)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
