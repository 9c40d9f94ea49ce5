"""Which server a call gets, by what is known of the servers."""

import json
import threading
from collections import Counter
from typing import cast

import grpc
import pytest

from loramux._channel import options
from loramux._routing.names import Addresses
from loramux._routing.rendezvous import MIN_BOUND, order
from loramux._routing.router import Route, RoutedCall, Router, ServerConnection
from loramux._routing.routes import ROUTES
from loramux.v1 import embedding_pb2, generation_pb2, residency_pb2
from tests.support.failed_call import Failure, refusal

SERVERS = ("a:1", "b:1", "c:1")
HOT = Route("hot")
BASE = Route("")
READY = grpc.ChannelConnectivity.READY
CONNECTING = grpc.ChannelConnectivity.CONNECTING
FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Status:
    """The state of a server, as it is set."""

    def __init__(self) -> None:
        self.is_now = READY

    def now(self) -> grpc.ChannelConnectivity:
        return self.is_now


class Servers:
    """Servers that exist as far as a router sees them."""

    def __init__(self, known: Addresses | None = None) -> None:
        self.addresses = known or Addresses(SERVERS)
        self.states: dict[str, Status] = {}
        self.closed: list[str] = []
        self.router: Router[grpc.Channel] = Router(
            self.addresses,
            self._open,
            lambda connection: self.closed.append(connection.server),
            retries=True,
        )

    def _open(self, server: str) -> ServerConnection[grpc.Channel]:
        self.states[server] = Status()
        return ServerConnection(server, cast(grpc.Channel, None), self.states[server])

    def take(self, route: Route, *tried: str, now: float = 0.0) -> ServerConnection[grpc.Channel]:
        connection = self.router.take(route, set(tried), now)
        assert connection is not None
        return connection

    def once(self, route: Route, *tried: str, now: float = 0.0) -> str:
        """Return which server gets a call that is over at once."""
        connection = self.take(route, *tried, now=now)
        self.router.release(connection)
        return connection.server


@pytest.fixture
def servers() -> Servers:
    servers = Servers()
    assert servers.router.connections
    return servers


def test_calls_for_one_adapter_go_to_one_server(servers: Servers) -> None:
    first, *_ = order("hot", SERVERS)
    assert {servers.once(HOT) for _ in range(20)} == {first}
    assert [servers.take(HOT).server for _ in range(MIN_BOUND)] == [first] * MIN_BOUND


def test_a_hot_adapter_spreads_over_more_servers_in_its_order(servers: Servers) -> None:
    first, second, third = order("hot", SERVERS)
    connections = [servers.take(HOT) for _ in range(24)]
    held = Counter(connection.server for connection in connections)
    assert held[first] >= held[second] >= held[third] > 0
    assert held[first] <= 10  # 1.25 of a third
    for connection in connections:
        servers.router.release(connection)
    assert servers.once(HOT) == first


def test_calls_of_the_base_go_where_the_fewest_are(servers: Servers) -> None:
    busy = servers.take(HOT).server
    assert busy not in {servers.once(BASE) for _ in range(10)}
    connections = [servers.take(BASE) for _ in range(8)]
    assert set(Counter(connection.server for connection in connections).values()) <= {2, 3}


def test_who_does_not_serve_is_left_out_until_it_does(servers: Servers) -> None:
    first, second, third = order("hot", SERVERS)
    for state in (FAILED, CONNECTING):
        servers.states[first].is_now = state
        assert servers.once(HOT) == second
        assert first not in {servers.once(BASE) for _ in range(6)}
    servers.states[second].is_now = FAILED
    assert servers.once(HOT) == third
    servers.states[first].is_now = READY
    assert servers.once(HOT) == first


def test_where_nobody_serves_who_may_come_back_is_asked(servers: Servers) -> None:
    first, _, third = order("hot", SERVERS)
    for server in SERVERS:
        servers.states[server].is_now = FAILED
    assert servers.once(HOT) == first
    servers.states[third].is_now = CONNECTING
    assert servers.once(HOT) == third


def test_who_was_tried_is_not_tried_again_before_others(servers: Servers) -> None:
    first, second, third = order("hot", SERVERS)
    assert servers.once(HOT, first) == second
    assert servers.once(HOT, first, second) == third
    assert servers.once(HOT, *SERVERS) == first
    assert servers.router.has_others({first}, 0.0)
    assert not servers.router.has_others(set(SERVERS), 0.0)
    servers.states[third].is_now = FAILED
    assert not servers.router.has_others({first, second}, 0.0)


def test_who_refused_a_call_gets_no_others_for_a_moment(servers: Servers) -> None:
    first, second, _ = order("hot", SERVERS)
    servers.router.avoid(servers.take(HOT), refusal("QUEUE_FULL", 30.0), 5.0)
    assert servers.once(HOT, now=5.9) == second
    assert servers.once(Route("hot", is_sticky=True), now=5.9) == first
    assert servers.once(HOT, now=6.1) == first


@pytest.mark.parametrize(
    "failure",
    [
        refusal("QUOTA_EXCEEDED", 30.0),
        refusal("DEADLINE_UNREACHABLE", 30.0),
        refusal("MEMORY_UNREACHABLE", 30.0),
        Failure(grpc.StatusCode.NOT_FOUND),
    ],
)
def test_a_failure_that_is_of_the_call_leaves_its_server_alone(
    servers: Servers, failure: Failure
) -> None:
    first = order("hot", SERVERS)[0]
    servers.router.avoid(servers.take(HOT), failure, 5.0)
    assert servers.once(HOT, now=5.0) == first


def test_what_belongs_to_one_server_goes_there_however_busy_it_is(servers: Servers) -> None:
    sticky = Route("hot", is_sticky=True)
    assert len({servers.take(sticky).server for _ in range(50)}) == 1


class Renamed(Addresses):
    """Whose servers change, and are found by lookup."""

    are_found = True

    def become(self, *servers: str) -> None:
        self.known = servers


def test_a_name_is_left_to_grpc_while_none_that_was_found_can_be_reached() -> None:
    servers = Servers(Renamed(SERVERS))
    first = servers.once(HOT)
    for state in servers.states.values():
        state.is_now = FAILED
    assert servers.router.take(HOT, set(), 0.0) is None
    assert servers.router.take(Route("hot", is_sticky=True), {first}, 0.0) is None
    servers.states[first].is_now = CONNECTING
    assert servers.once(HOT) == first


def test_servers_come_and_go_with_their_share_alone() -> None:
    known = Renamed(SERVERS)
    servers = Servers(known)
    adapters = [Route(f"adapter-{number}") for number in range(100)]
    before = {route: servers.once(route) for route in adapters}
    known.become("a:1", "b:1")
    after = {route: servers.once(route) for route in adapters}
    assert {route for route in adapters if before[route] != after[route]} == {
        route for route in adapters if before[route] == "c:1"
    }
    assert servers.closed == ["c:1"]
    known.become(*SERVERS)
    assert {route: servers.once(route) for route in adapters} == before


def test_a_server_that_leaves_keeps_the_calls_that_it_has() -> None:
    known = Renamed(SERVERS)
    servers = Servers(known)
    connection = servers.take(HOT)
    known.become(*(server for server in SERVERS if server != connection.server))
    assert servers.once(HOT) != connection.server
    assert servers.closed == []
    servers.router.release(connection)
    assert servers.closed == [connection.server]


def test_a_call_that_is_ended_by_the_end_of_the_client_is_not_made_again(
    servers: Servers,
) -> None:
    calls = [RoutedCall(servers.router, HOT, 60.0, repeats=True) for _ in range(2)]
    for routed_call in calls:
        assert routed_call.take()
    assert calls[0].failed(Failure(grpc.StatusCode.CANCELLED)) == 0.0
    assert len(servers.router.close()) == len(SERVERS)
    assert calls[1].failed(Failure(grpc.StatusCode.CANCELLED)) is None
    assert calls[1].take() is None


def test_threads_share_a_router(servers: Servers) -> None:
    most: Counter[str] = Counter()

    def call() -> None:
        for _ in range(300):
            connection = servers.take(HOT)
            most[connection.server] = max(most[connection.server], connection.num_calls)
            servers.router.release(connection)

    threads = [threading.Thread(target=call) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most.values()) <= MIN_BOUND
    assert [connection.num_calls for connection in servers.router.connections] == [0, 0, 0]


def test_the_adapter_of_a_call_is_in_its_message() -> None:
    paths = {path.rpartition("/")[2]: found for path, found in ROUTES.items()}
    asked = generation_pb2.GenerateRequest(adapter="acme/fr:stable")
    assert paths["Generate"](asked) == Route("acme/fr")
    assert paths["Embed"](embedding_pb2.EmbedRequest()) == BASE
    mix = generation_pb2.GenerateRequest()
    mix.adapters.add(adapter="light", weight=0.5)
    mix.adapters.add(adapter="heavy:2", weight=-2)
    mix.adapters.add(adapter="plain")
    assert paths["StreamGenerate"](mix) == Route("heavy")
    pin = residency_pb2.PinAdapterRequest(name="fr:3")
    assert paths["PinAdapter"](pin) == Route("fr", is_sticky=True)


def test_every_method_with_a_route_exists_and_may_be_made_again() -> None:
    from google.protobuf import descriptor_pool

    import loramux.client  # noqa: F401 - has all services

    config = json.loads(str(dict(options("a:1", retries=True))["grpc.service_config"]))
    (repeated,) = config["methodConfig"]
    for path in ROUTES:
        service, _, method = path.removeprefix("/").rpartition("/")
        found = descriptor_pool.Default().FindServiceByName(service)
        assert method in found.methods_by_name
        assert {"service": service, "method": method} in repeated["name"]
