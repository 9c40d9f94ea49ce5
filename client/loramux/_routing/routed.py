"""A blocking channel over several servers, each with a channel of its own."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

from loramux._routing.names import Addresses
from loramux._routing.router import Method, RoutedCall, Router, ServerConnection
from loramux._routing.routes import ROUTES, RouteOf, sticky_route

Metadata = tuple[tuple[str, str], ...]

SETTLE_SECONDS = 1.0
"""Maximum wait of the first call for all servers to be connected or fail, for correct affinity."""
POLL_SECONDS = 0.005
"""Interval of polling the servers' states meanwhile."""
_STATES = {state.value[0]: state for state in grpc.ChannelConnectivity}


class PolledState:
    """The connectivity state of a channel, polled on demand.

    `Channel.subscribe` has a thread that is always inside gRPC, and a process that forks then
    cannot have channels of its own. So this calls what that thread calls.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        """Start connecting."""
        self._channel: Any = channel
        self.now()

    def now(self) -> grpc.ChannelConnectivity:
        """Return the state."""
        try:
            return _STATES[self._channel._channel.check_connectivity_state(True)]
        except ValueError:  # closed
            return grpc.ChannelConnectivity.SHUTDOWN


class RetryDelays:
    """Backoff delays of calls, which end when the client is closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_over = False

    def wait(self, seconds: float, is_cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Wait; return whether the call was cancelled or the client closed, so must not retry.

        Whoever makes `is_cancelled` true has to call `wake`.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._is_over or is_cancelled(), seconds)

    def wake(self) -> None:
        """Wake all waits, so that cancelled ones end."""
        with self._changed:
            self._changed.notify_all()

    def end(self) -> None:
        """End all delays, also future ones."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class RoutedStream:
    """The responses to a streaming call, from the server that sent the first one."""

    def __init__(
        self,
        routed_call: RoutedCall[grpc.Channel],
        attempt: Callable[[], Any],
        delays: RetryDelays,
    ) -> None:
        """Prepare the call; it starts when the first response is requested."""
        self._routed_call, self._attempt, self._delays = routed_call, attempt, delays
        self._call: Any = None
        self._has_begun = False
        self._code: grpc.StatusCode | None = None
        self._is_cancelled = False
        self._lock = threading.Lock()
        """Held while the call ends: another thread may cancel it."""
        self._callbacks: list[Callable[[], None]] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        while True:
            try:
                if self._call is None:
                    self._call = self._attempt()
                    if self._is_cancelled:  # by another thread, which saw no call
                        self._call.cancel()
                answer: object = next(self._call)
            except grpc.RpcError as error:
                is_last = self._has_begun or self._is_cancelled
                delay = None if is_last else self._routed_call.failed(error)
                self._routed_call.release()
                if delay is None or self._delays.wait(delay, lambda: self._is_cancelled):
                    self._end(error.code())
                    raise
                self._call = None
            except StopIteration:
                self._end(grpc.StatusCode.OK)
                raise
            else:
                if not self._has_begun:
                    self._has_begun = True
                    self._routed_call.succeeded()
                return answer

    def cancel(self) -> None:
        """Cancel the call; does nothing if it has ended."""
        self._is_cancelled = True
        self._delays.wake()
        if (call := self._call) is not None:
            call.cancel()
        self._end(grpc.StatusCode.CANCELLED)

    def code(self) -> grpc.StatusCode:
        """Return the status of the call, which has to have ended."""
        assert self._code is not None
        return self._code

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called at the end; return False if the call has ended already."""
        with self._lock:
            if self._code is None:
                self._callbacks.append(callback)
            return self._code is None

    def _end(self, code: grpc.StatusCode) -> None:
        self._routed_call.release()
        with self._lock:
            if self._code is not None:
                return
            self._code = code
        for callback in self._callbacks:
            callback()


class RoutedChannel:
    """Routes calls by adapter; all others go over a channel that is shared by all servers."""

    def __init__(
        self,
        shared: grpc.Channel,
        connect: Callable[[str], grpc.Channel],
        addresses: Addresses,
        *,
        by_adapter: bool,
        retries: bool,
    ) -> None:
        """Prepare.

        Args:
            shared: Channel to all servers.
            connect: Opens a channel to one of them.
            addresses: The addresses of the servers.
            by_adapter: Whether calls for an adapter are routed, or use `shared` as well.
            retries: Whether calls may be retried.
        """
        self._shared, self._connect = shared, connect
        self._by_adapter = by_adapter
        self._router = Router(addresses, self._open, _close_aside, retries=retries)
        self._delays = RetryDelays()
        self._is_settled = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the channel has
        return getattr(self._shared, name)

    def to(self, reference: str) -> "StickyChannel":
        """Return a channel that sends every call to the server of one adapter."""
        return StickyChannel(self, sticky_route(reference))

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

    def routed(self, method: Method, route_of: RouteOf, *, repeats: bool) -> Callable[..., Any]:
        """Return a callable for a method with one response, routed by `route_of`.

        With `repeats`, the call may be retried.
        """
        shared = method.on(self._shared)

        def call(request: object, *, timeout: float | None, metadata: Metadata) -> object:
            routed_call = RoutedCall(self._router, route_of(request), timeout, repeats=repeats)
            self._settle(routed_call.remaining)
            while True:
                connection = routed_call.take()
                made = connection.made(method) if connection else shared
                try:
                    answer: object = made(request, timeout=routed_call.remaining, metadata=metadata)
                except grpc.RpcError as error:
                    delay = routed_call.failed(error)
                    routed_call.release()
                    if delay is None or self._delays.wait(delay):
                        raise
                else:
                    routed_call.succeeded()
                    return answer
                finally:
                    routed_call.release()

        return call

    def close(self) -> None:
        """Close all channels; calls in progress are cancelled, or fail with their last error."""
        connections = self._router.close()
        self._delays.end()
        self._shared.close()
        for connection in connections:
            connection.channel.close()

    def _streaming(self, method: Method, route_of: RouteOf) -> Callable[..., RoutedStream]:
        shared = method.on(self._shared)

        def begin(request: object, *, timeout: float | None, metadata: Metadata) -> RoutedStream:
            def attempt() -> Any:  # noqa: ANN401 - a call of gRPC's
                self._settle(routed_call.remaining)
                connection = routed_call.take()
                made = connection.made(method) if connection else shared
                return made(request, timeout=routed_call.remaining, metadata=metadata)

            routed_call = RoutedCall(self._router, route_of(request), timeout, repeats=True)
            return RoutedStream(routed_call, attempt, self._delays)

        return begin

    def _settle(self, seconds: float | None) -> None:
        if self._is_settled:
            return
        until = time.monotonic() + min(SETTLE_SECONDS, math.inf if seconds is None else seconds)
        self._router.addresses.wait(max(0.0, until - time.monotonic()))
        while not self._router.is_settled() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        self._is_settled = True

    def _open(self, server: str) -> ServerConnection[grpc.Channel]:
        channel = self._connect(server)
        return ServerConnection(server, channel, PolledState(channel))


class StickyChannel:
    """A channel that sends every call to the server of one adapter, without retries."""

    def __init__(self, channel: RoutedChannel, route_of: RouteOf) -> None:
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


def _close_aside(connection: ServerConnection[grpc.Channel]) -> None:
    """Close an idle channel in the background."""
    threading.Thread(target=connection.channel.close, name="loramux-close", daemon=True).start()
