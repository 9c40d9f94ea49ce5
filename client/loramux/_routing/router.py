"""The servers of a client: a channel to each, what each has to do, and which one gets a call.

Made for threads; an event loop is one of them. Waits for nothing.
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
    """Where a call is to go."""

    adapter: str
    """Its name; empty for the base model, which every server has."""
    is_home: bool = False
    """Whether only the first server of those that serve will do, however much it has to do."""


class Method(NamedTuple):
    """How a channel is told of a method."""

    kind: str
    """`unary_unary` or another function of channels."""
    path: str
    arguments: tuple[object, ...]
    options: dict[str, object]

    def on(self, channel: object) -> Callable[..., Any]:
        """Return what calls it on `channel`."""
        made: Callable[..., Any] = getattr(channel, self.kind)(
            self.path, *self.arguments, **self.options
        )
        return made


class State(Protocol):
    """The state of a channel."""

    def now(self) -> grpc.ChannelConnectivity:
        """Return it."""


@dataclass(slots=True, eq=False)
class Link(Generic[Channel]):
    """One server."""

    server: str
    """`HOST:PORT`."""
    channel: Channel
    state: State
    """READY where the server says that it serves."""
    num_calls: int = 0
    """Under way, of this client."""
    avoided_until: float = 0.0
    """Of the monotonic clock: it refused a call a moment ago."""
    is_gone: bool = False
    """Whether it is no server of the client any more; ends with its last call."""
    _made: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def made(self, method: Method) -> Callable[..., Any]:
        """Return what calls `method` here."""
        if method.path not in self._made:
            self._made[method.path] = method.on(self.channel)
        return self._made[method.path]


class Router(Generic[Channel]):
    """Chooses servers for calls."""

    def __init__(
        self,
        addresses: Addresses,
        open_link: Callable[[str], Link[Channel]],
        close_link: Callable[[Link[Channel]], None],
        *,
        retries: bool,
    ) -> None:
        """Prepare; there are links when there is a call."""
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
        """Whether there are to be no more calls."""
        return self._is_closed

    @property
    def links(self) -> list[Link[Channel]]:
        """The servers that there are now."""
        with self._lock:
            self._follow()
            return list(self._links.values())

    def is_settled(self) -> bool:
        """Whether it is known of each server if it can be reached and serves."""
        return all(link.state.now() in (_READY, _FAILED) for link in self.links)

    def take(self, route: Route, tried: set[str], now: float) -> Link[Channel] | None:
        """Return the server for a call, which counts there until it is released.

        None where no server is known, or none of those that were looked up can be reached. Those
        that were `tried` already are the last resort.
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
        """Note the end of a call."""
        with self._lock:
            link.num_calls -= 1
            is_last = link.is_gone and not link.num_calls
        if is_last:
            self._close(link)

    def avoid(self, link: Link[Channel], error: grpc.RpcError, now: float) -> None:
        """Note how a call failed."""
        if seconds := seconds_avoided(error):
            link.avoided_until = now + seconds
        if is_away(error):
            self.addresses.hurry()

    def has_others(self, tried: set[str], now: float) -> bool:
        """Return whether there are servers that serve and were not `tried`."""
        with self._lock:
            return any(
                link.state.now() is _READY and link.avoided_until <= now
                for server, link in self._links.items()
                if server not in tried
            )

    def close(self) -> list[Link[Channel]]:
        """Forget all servers, and return their links, which are to be closed."""
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
        """Have a link to each server that there is now."""
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
    """One call, from server to server until it is answered."""

    def __init__(
        self,
        router: Router[Channel],
        route: Route,
        timeout: float | None,
        *,
        repeats: bool,
    ) -> None:
        """Begin; with `repeats`, the call may be made more than once."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._router: Router[Channel] = router
        self._route = route
        self._repeats = repeats and router.retries
        self._attempts = Attempts(router.budget, deadline)
        self._tried: set[str] = set()
        self._link: Link[Channel] | None = None

    @property
    def remaining(self) -> float | None:
        """Seconds that are left; None for no limit."""
        return self._attempts.remaining(time.monotonic())

    def take(self) -> Link[Channel] | None:
        """Return the server for the next attempt; None where none is known or can be reached."""
        self._link = self._router.take(self._route, self._tried, time.monotonic())
        return self._link

    def failed(self, error: grpc.RpcError) -> float | None:
        """Return the seconds until another attempt is made; None where none is to be."""
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
        """Note the answer, or the beginning of it."""
        self._attempts.succeeded()

    def release(self) -> None:
        """Note that the attempt is over; it may be noted again."""
        if self._link is not None:
            self._router.release(self._link)
            self._link = None
