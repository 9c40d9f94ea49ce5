"""The servers of a client: a channel to each, its load, and which one gets a call.

Thread-safe, and never blocks on the network, so that it serves event loops as well.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grpc

from loramux._routing.attempts import Attempts, Budget, is_unavailable, seconds_avoided
from loramux._routing.names import Addresses
from loramux._routing.rendezvous import first_within, least_loaded, order

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)

_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Route(NamedTuple):
    """Where a call should go."""

    adapter: str
    """Name of the adapter; empty for the base model, which every server has."""
    is_sticky: bool = False
    """Whether it has to be the first available server in the adapter's order, whatever its load."""


class Method(NamedTuple):
    """A gRPC method, with the arguments that make a callable of it on a channel."""

    kind: str
    """Method of a channel, such as `unary_unary`."""
    path: str
    arguments: tuple[object, ...]
    options: dict[str, object]

    def on(self, channel: object) -> Callable[..., Any]:
        """Return a callable for the method on `channel`."""
        made: Callable[..., Any] = getattr(channel, self.kind)(
            self.path, *self.arguments, **self.options
        )
        return made


class State(Protocol):
    """The connectivity state of a channel."""

    def now(self) -> grpc.ChannelConnectivity:
        """Return the state."""


@dataclass(slots=True, eq=False)
class ServerConnection(Generic[Channel]):
    """The connection to one server."""

    server: str
    """`HOST:PORT`."""
    channel: Channel
    state: State
    """READY if the server is healthy."""
    num_calls: int = 0
    """Calls of this client in progress."""
    avoided_until: float = 0.0
    """Time on the monotonic clock until which the server is avoided, after it refused a call."""
    is_gone: bool = False
    """Whether its address was removed; it is closed after its last call."""
    _made: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def made(self, method: Method) -> Callable[..., Any]:
        """Return the callable for `method` on this channel, made once."""
        if method.path not in self._made:
            self._made[method.path] = method.on(self.channel)
        return self._made[method.path]


class Router(Generic[Channel]):
    """Chooses servers for calls and counts the calls of each."""

    def __init__(
        self,
        addresses: Addresses,
        open_connection: Callable[[str], ServerConnection[Channel]],
        close_connection: Callable[[ServerConnection[Channel]], None],
        *,
        retries: bool,
    ) -> None:
        """Prepare; connections are opened when there is a call."""
        self.addresses = addresses
        self.budget = Budget()
        self.retries = retries
        self._open: Callable[[str], ServerConnection[Channel]] = open_connection
        self._close: Callable[[ServerConnection[Channel]], None] = close_connection
        self._lock = threading.Lock()
        self._connections: dict[str, ServerConnection[Channel]] = {}
        self._servers: tuple[str, ...] = ()
        self._turn = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed, so that there are no more calls."""
        return self._is_closed

    @property
    def connections(self) -> list[ServerConnection[Channel]]:
        """Connections to the current servers."""
        with self._lock:
            self._follow()
            return list(self._connections.values())

    def is_settled(self) -> bool:
        """Return whether each server is known to be healthy or unreachable."""
        return all(connection.state.now() in (_READY, _FAILED) for connection in self.connections)

    def take(self, route: Route, tried: set[str], now: float) -> ServerConnection[Channel] | None:
        """Return the connection for a call, which counts as its load until it is released.

        None if no server is known, or if none of those found by DNS is reachable. Servers that were
        `tried` already are the last resort.
        """
        self.addresses.refresh(now)
        with self._lock:
            self._follow()
            states = {
                server: connection.state.now() for server, connection in self._connections.items()
            }
            if _FAILED in states.values():
                self.addresses.refresh_soon()
            is_lost = all(state is _FAILED for state in states.values())
            if not states or (is_lost and self.addresses.are_found):
                return None
            connection = self._connections[self._choose(states, route, tried, now)]
            connection.num_calls += 1
            return connection

    def release(self, connection: ServerConnection[Channel]) -> None:
        """Record the end of a call."""
        with self._lock:
            connection.num_calls -= 1
            is_last = connection.is_gone and not connection.num_calls
        if is_last:
            self._close(connection)

    def avoid(
        self, connection: ServerConnection[Channel], error: grpc.RpcError, now: float
    ) -> None:
        """Avoid the server for a while if `error` is a reason; if it is lost, refresh addresses."""
        if seconds := seconds_avoided(error):
            connection.avoided_until = now + seconds
        if is_unavailable(error):
            self.addresses.refresh_soon()

    def has_others(self, tried: set[str], now: float) -> bool:
        """Return whether there are healthy servers that were not `tried`."""
        with self._lock:
            return any(
                connection.state.now() is _READY and connection.avoided_until <= now
                for server, connection in self._connections.items()
                if server not in tried
            )

    def close(self) -> list[ServerConnection[Channel]]:
        """Remove all servers, and return their connections for closing."""
        with self._lock:
            connections, self._connections = list(self._connections.values()), {}
            self._is_closed = True
            return connections

    def _choose(
        self,
        states: dict[str, grpc.ChannelConnectivity],
        route: Route,
        tried: set[str],
        now: float,
    ) -> str:
        chosen = (
            [server for server, state in states.items() if state is _READY]
            or [server for server, state in states.items() if state is not _FAILED]
            or list(states)
        )
        chosen = [server for server in chosen if server not in tried] or chosen
        ordered = order(route.adapter, self._servers) if route.adapter else self._servers
        among = set(chosen)
        if route.is_sticky:
            return next(server for server in ordered if server in among)
        among = {each for each in among if self._connections[each].avoided_until <= now} or among
        chosen = [server for server in ordered if server in among]
        if route.adapter:
            return first_within(chosen, self._load)
        self._turn += 1
        return least_loaded(chosen, self._load, self._turn)

    def _load(self, server: str) -> int:
        return self._connections[server].num_calls

    def _follow(self) -> None:
        """Update the connections to the current addresses."""
        servers = self.addresses.known
        if self._is_closed or servers is self._servers:
            return
        for server in set(self._servers) - set(servers):
            connection = self._connections.pop(server)
            connection.is_gone = True
            if not connection.num_calls:
                self._close(connection)
        for server in servers:
            if server not in self._connections:
                self._connections[server] = self._open(server)
        self._servers = servers


class RoutedCall(Generic[Channel]):
    """One call over all its attempts."""

    def __init__(
        self,
        router: Router[Channel],
        route: Route,
        timeout: float | None,
        *,
        repeats: bool,
    ) -> None:
        """Start; with `repeats`, the call may be retried."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._router: Router[Channel] = router
        self._route = route
        self._repeats = repeats and router.retries
        self._attempts = Attempts(router.budget, deadline)
        self._tried: set[str] = set()
        self._connection: ServerConnection[Channel] | None = None
        self._lock = threading.Lock()

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return self._attempts.remaining(time.monotonic())

    def take(self) -> ServerConnection[Channel] | None:
        """Return the connection for the next attempt; None if no server is known or reachable."""
        self._connection = self._router.take(self._route, self._tried, time.monotonic())
        return self._connection

    def failed(self, error: grpc.RpcError) -> float | None:
        """Return the seconds until the next attempt; None if there is none."""
        if self._connection is None:
            return None
        now = time.monotonic()
        self._router.avoid(self._connection, error, now)
        if not self._repeats or self._router.is_closed:
            return None
        self._tried.add(self._connection.server)
        has_others = self._router.has_others(self._tried, now)
        delay = self._attempts.delay(error, has_others=has_others, now=now)
        if delay is not None and not has_others:
            self._tried.clear()
        return delay

    def succeeded(self) -> None:
        """Record that the answer, or its first part, arrived."""
        self._attempts.succeeded()

    def release(self) -> None:
        """Record the end of the attempt; may be called repeatedly, and from several threads."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            self._router.release(connection)
