"""An asynchronous channel over several servers, each with a channel of its own."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self

import grpc

from loramux._routing.names import Addresses
from loramux._routing.routed import POLL_SECONDS, SETTLE_SECONDS, Metadata
from loramux._routing.router import Method, RoutedCall, Router, ServerConnection
from loramux._routing.routes import ROUTES, RouteOf, sticky_route


class PolledState:
    """The connectivity state of a channel, polled on demand."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Start connecting."""
        self._channel = channel
        self.now()

    def now(self) -> grpc.ChannelConnectivity:
        """Return the state."""
        try:
            return self._channel.get_state(try_to_connect=True)
        except grpc.aio.UsageError:  # closed
            return grpc.ChannelConnectivity.SHUTDOWN


class AioRetryDelays:
    """Backoff delays of calls, which end when the client is closed."""

    def __init__(self) -> None:
        self._is_over = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Wait; return whether the client was closed, so that there are no more attempts."""
        try:
            async with asyncio.timeout(seconds):
                await self._is_over.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """End all delays, also future ones."""
        self._is_over.set()


class AioRoutedStream:
    """The responses to a streaming call, from the server that sent the first one."""

    def __init__(
        self,
        routed_call: RoutedCall[grpc.aio.Channel],
        attempt: Callable[[], Coroutine[Any, Any, Any]],
        delays: AioRetryDelays,
    ) -> None:
        """Prepare the call; it starts when the first response is requested."""
        self._routed_call, self._attempt, self._delays = routed_call, attempt, delays
        self._call: Any = None
        self._next: Callable[[], Coroutine[Any, Any, object]] | None = None
        self._has_begun = False
        self._code: grpc.StatusCode | None = None
        self._callbacks: list[Callable[[AioRoutedStream], None]] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        while True:
            try:
                if self._next is None:
                    self._call = await self._attempt()
                    self._next = aiter(self._call).__anext__
                    if self._code is not None:  # cancelled by another task, which saw no call
                        self.cancel()
                answer = await self._next()
            except grpc.RpcError as error:
                delay = None if self._has_begun else self._routed_call.failed(error)
                self._routed_call.release()
                if delay is None or await self._delays.wait(delay) or self._code is not None:
                    self._end(error.code())
                    raise
                self._call = self._next = None
            except StopAsyncIteration:
                self._end(grpc.StatusCode.OK)
                raise
            else:
                if not self._has_begun:
                    self._has_begun = True
                    self._routed_call.succeeded()
                return answer

    def cancel(self) -> None:
        """Cancel the call; does nothing if it has ended."""
        if self._call is not None:
            self._call.cancel()
        self._end(grpc.StatusCode.CANCELLED)

    async def code(self) -> grpc.StatusCode:
        """Return the status of the call, which has to have ended."""
        assert self._code is not None
        return self._code

    def add_done_callback(self, callback: "Callable[[AioRoutedStream], None]") -> None:
        """Register `callback` to be called at the end."""
        self._callbacks.append(callback)

    def _end(self, code: grpc.StatusCode) -> None:
        self._routed_call.release()
        if self._code is None:
            self._code = code
            for callback in self._callbacks:
                callback(self)


class AioRoutedChannel:
    """Asynchronous counterpart of `RoutedChannel`."""

    def __init__(
        self,
        shared: grpc.aio.Channel,
        connect: Callable[[str], grpc.aio.Channel],
        addresses: Addresses,
        *,
        by_adapter: bool,
        retries: bool,
    ) -> None:
        """Prepare; for the arguments see `RoutedChannel`."""
        self._shared, self._connect = shared, connect
        self._by_adapter = by_adapter
        self._router = Router(addresses, self._open, self._close_aside, retries=retries)
        self._delays = AioRetryDelays()
        self._is_settled = False
        self._closing: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the channel has
        return getattr(self._shared, name)

    def to(self, reference: str) -> "AioStickyChannel":
        """Return a channel that sends every call to the server of one adapter."""
        return AioStickyChannel(self, sticky_route(reference))

    async def each(self) -> list[grpc.aio.Channel]:
        """Return a channel to each known server, sorted by address.

        They are closed with this channel, or when their server is no longer one of the addresses.
        """
        self._router.addresses.refresh(time.monotonic())
        await self._settle(None)
        return [
            connection.channel
            for connection in sorted(
                self._router.connections, key=lambda connection: connection.server
            )
        ]

    def unary_unary(self, path: str, *arguments: object, **options: object) -> Callable[..., Any]:
        """Return a callable for a method with one request and one response."""
        method = Method("unary_unary", path, arguments, options)
        if self._by_adapter and path in ROUTES:
            return self.routed(method, ROUTES[path], repeats=True)
        return method.on(self._shared)

    def unary_stream(self, path: str, *arguments: object, **options: object) -> Callable[..., Any]:
        """Return a callable for a method with one request and a stream of responses."""
        method = Method("unary_stream", path, arguments, options)
        if self._by_adapter and path in ROUTES:
            return self._streaming(method, ROUTES[path])
        return method.on(self._shared)

    def routed(
        self, method: Method, route_of: RouteOf, *, repeats: bool
    ) -> Callable[..., Coroutine[Any, Any, object]]:
        """Return a callable for a method with one response, routed by `route_of`.

        With `repeats`, the call may be retried.
        """
        shared = method.on(self._shared)

        async def call(
            request: object,
            *,
            timeout: float | None,  # noqa: ASYNC109 - it goes along with the call
            metadata: Metadata,
        ) -> object:
            routed_call = RoutedCall(self._router, route_of(request), timeout, repeats=repeats)
            await self._settle(routed_call.remaining)
            while True:
                connection = routed_call.take()
                made = connection.made(method) if connection else shared
                try:
                    answer: object = await made(
                        request, timeout=routed_call.remaining, metadata=metadata
                    )
                except grpc.RpcError as error:
                    delay = routed_call.failed(error)
                    routed_call.release()
                    if delay is None or await self._delays.wait(delay):
                        raise
                else:
                    routed_call.succeeded()
                    return answer
                finally:
                    routed_call.release()

        return call

    async def close(self) -> None:
        """Close all channels; calls in progress are cancelled, or fail with their last error."""
        self._delays.end()
        channels = [connection.channel for connection in self._router.close()]
        await asyncio.gather(*(channel.close() for channel in (self._shared, *channels)))
        await asyncio.gather(*self._closing)

    def _streaming(self, method: Method, route_of: RouteOf) -> Callable[..., AioRoutedStream]:
        shared = method.on(self._shared)

        def begin(request: object, *, timeout: float | None, metadata: Metadata) -> AioRoutedStream:
            async def attempt() -> Any:  # noqa: ANN401 - a call of gRPC's
                await self._settle(routed_call.remaining)
                connection = routed_call.take()
                made = connection.made(method) if connection else shared
                return made(request, timeout=routed_call.remaining, metadata=metadata)

            routed_call = RoutedCall(self._router, route_of(request), timeout, repeats=True)
            return AioRoutedStream(routed_call, attempt, self._delays)

        return begin

    async def _settle(self, seconds: float | None) -> None:
        if self._is_settled:
            return
        until = time.monotonic() + min(SETTLE_SECONDS, math.inf if seconds is None else seconds)
        if not self._router.addresses.known:
            left = max(0.0, until - time.monotonic())
            await asyncio.to_thread(self._router.addresses.wait, left)
        while not self._router.is_settled() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        self._is_settled = True

    def _open(self, server: str) -> ServerConnection[grpc.aio.Channel]:
        channel = self._connect(server)
        return ServerConnection(server, channel, PolledState(channel))

    def _close_aside(self, connection: ServerConnection[grpc.aio.Channel]) -> None:
        """Close an idle channel in the background."""
        closing = asyncio.ensure_future(connection.channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class AioStickyChannel:
    """A channel that sends every call to the server of one adapter, without retries."""

    def __init__(self, channel: AioRoutedChannel, route_of: RouteOf) -> None:
        """Send calls over `channel`."""
        self._channel, self._route_of = channel, route_of

    def unary_unary(self, path: str, *arguments: object, **options: object) -> Callable[..., Any]:
        """Return a callable for a method with one request and one response."""
        method = Method("unary_unary", path, arguments, options)
        return self._channel.routed(method, self._route_of, repeats=False)

    def stream_unary(self, path: str, *arguments: object, **options: object) -> Callable[..., Any]:
        """Return a callable for a method with a stream of requests and one response."""
        method = Method("stream_unary", path, arguments, options)
        return self._channel.routed(method, self._route_of, repeats=False)
