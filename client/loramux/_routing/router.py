"""The servers of a client: a channel to each, its load, and which one gets a call.

Thread-safe, and never blocks on the network, so that it serves event loops as well.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grpc

from loramux._routing.attempts import Attempts, Budget, is_away, seconds_avoided
from loramux._routing.names import Addresses
from loramux._routing.rendezvous import first_within, least_loaded, order

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)

_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Route(NamedTuple):
    """Where a call should go."""

    adapter: str
    """Name of the adapter; empty for the base model, which every server has."""
    is_home: bool = False
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
class Link(Generic[Channel]):
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
        open_link: Callable[[str], Link[Channel]],
        close_link: Callable[[Link[Channel]], None],
        *,
        retries: bool,
    ) -> None:
        """Prepare; links are opened when there is a call."""
        self.addresses = addresses
        self.budget = Budget()
        self.retries = retries
        self._open: Callable[[str], Link[Channel]] = open_link
        self._close: Callable[[Link[Channel]], None] = close_link
        self._lock = threading.Lock()
        self._links: dict[str, Link[Channel]] = {}
        self._servers: tuple[str, ...] = ()
        self._turn = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed, so that there are no more calls."""
        return self._is_closed

    @property
    def links(self) -> list[Link[Channel]]:
        """Links to the current servers."""
        with self._lock:
            self._follow()
            return list(self._links.values())

    def is_settled(self) -> bool:
        """Return whether each server is known to be healthy or unreachable."""
        return all(link.state.now() in (_READY, _FAILED) for link in self.links)

    def take(self, route: Route, tried: set[str], now: float) -> Link[Channel] | None:
        """Return the link for a call, which counts as its load until it is released.

        None if no server is known, or if none of those found by DNS is reachable. Servers that were
        `tried` already are the last resort.
        """
        self.addresses.refresh(now)
        with self._lock:
            self._follow()
            states = {server: link.state.now() for server, link in self._links.items()}
            if _FAILED in states.values():
                self.addresses.hurry()
            is_lost = all(state is _FAILED for state in states.values())
            if not states or (is_lost and self.addresses.are_found):
                return None
            link = self._links[self._choose(states, route, tried, now)]
            link.num_calls += 1
            return link

    def release(self, link: Link[Channel]) -> None:
        """Record the end of a call."""
        with self._lock:
            link.num_calls -= 1
            is_last = link.is_gone and not link.num_calls
        if is_last:
            self._close(link)

    def avoid(self, link: Link[Channel], error: grpc.RpcError, now: float) -> None:
        """Avoid the server for a while if `error` is a reason; if it is lost, refresh addresses."""
        if seconds := seconds_avoided(error):
            link.avoided_until = now + seconds
        if is_away(error):
            self.addresses.hurry()

    def has_others(self, tried: set[str], now: float) -> bool:
        """Return whether there are healthy servers that were not `tried`."""
        with self._lock:
            return any(
                link.state.now() is _READY and link.avoided_until <= now
                for server, link in self._links.items()
                if server not in tried
            )

    def close(self) -> list[Link[Channel]]:
        """Remove all servers, and return their links for closing."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
            self._is_closed = True
            return links

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
        if route.is_home:
            return next(server for server in ordered if server in among)
        among = {each for each in among if self._links[each].avoided_until <= now} or among
        chosen = [server for server in ordered if server in among]
        if route.adapter:
            return first_within(chosen, self._load)
        self._turn += 1
        return least_loaded(chosen, self._load, self._turn)

    def _load(self, server: str) -> int:
        return self._links[server].num_calls

    def _follow(self) -> None:
        """Update the links to the current addresses."""
        servers = self.addresses.known
        if self._is_closed or servers is self._servers:
            return
        for server in set(self._servers) - set(servers):
            link = self._links.pop(server)
            link.is_gone = True
            if not link.num_calls:
                self._close(link)
        for server in servers:
            if server not in self._links:
                self._links[server] = self._open(server)
        self._servers = servers


class Trip(Generic[Channel]):
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
        self._link: Link[Channel] | None = None
        self._lock = threading.Lock()

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return self._attempts.remaining(time.monotonic())

    def take(self) -> Link[Channel] | None:
        """Return the link for the next attempt; None if no server is known or reachable."""
        self._link = self._router.take(self._route, self._tried, time.monotonic())
        return self._link

    def failed(self, error: grpc.RpcError) -> float | None:
        """Return the seconds until the next attempt; None if there is none."""
        if self._link is None:
            return None
        now = time.monotonic()
        self._router.avoid(self._link, error, now)
        if not self._repeats or self._router.is_closed:
            return None
        self._tried.add(self._link.server)
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
            link, self._link = self._link, None
        if link is not None:
            self._router.release(link)
