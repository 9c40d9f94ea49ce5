"""Which server has an adapter, and how few move when servers come and go."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux._routing.rendezvous import (
    LOAD_FACTOR,
    MIN_BOUND,
    adapter_name,
    bound,
    first_within,
    least_loaded,
    order,
)

ADAPTERS = [f"tenant-{number % 7}/adapter-{number}" for number in range(600)]
EXAMPLES = settings(max_examples=30)

servers = st.lists(
    st.integers(0, 250).map(lambda number: f"10.0.0.{number}:50051"),
    min_size=2, max_size=12, unique=True,
).map(tuple)  # fmt: skip


@pytest.mark.parametrize(
    "reference",
    ["fr", "fr:3", "fr:stable", "public/fr:3", f"fr@sha256:{'0' * 64}", f"fr:3@sha256:{'0' * 64}"],
)
def test_all_versions_of_an_adapter_are_one(reference: str) -> None:
    assert adapter_name(reference) == "fr"
    assert adapter_name("acme/fr:3") == "acme/fr"


@EXAMPLES
@given(servers, st.randoms())
def test_every_client_finds_the_same_order(servers: tuple[str, ...], random: object) -> None:
    shuffled = list(servers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert order("fr", servers) == order("fr", tuple(shuffled))
    assert sorted(order("fr", servers)) == sorted(servers)


def test_the_order_stays_what_it_is() -> None:
    """Clients of other versions have to find the same server."""
    assert order("support-fr", ("a:50051", "b:50051", "c:50051")) == (
        "c:50051",
        "a:50051",
        "b:50051",
    )


@EXAMPLES
@given(servers)
def test_a_server_that_leaves_moves_only_its_own(servers: tuple[str, ...]) -> None:
    gone, *left = servers
    for adapter in ADAPTERS[:50]:
        before = [server for server in order(adapter, servers) if server != gone]
        assert list(order(adapter, tuple(left))) == before


@EXAMPLES
@given(servers)
def test_adapters_spread_evenly(servers: tuple[str, ...]) -> None:
    share = len(ADAPTERS) / len(servers)
    held = Counter(order(adapter, servers)[0] for adapter in ADAPTERS)
    # Six deviations of a fair draw: far more than chance does, far less than a bad hash.
    assert all(abs(held[server] - share) < 6 * share**0.5 for server in servers)


@EXAMPLES
@given(servers)
def test_what_one_server_had_spreads_over_all_others(servers: tuple[str, ...]) -> None:
    gone, *left = servers
    heirs = Counter(
        order(adapter, servers)[1] for adapter in ADAPTERS if order(adapter, servers)[0] == gone
    )
    share = heirs.total() / len(left)
    assert all(abs(heirs[server] - share) < 8 * share**0.5 + 2 for server in left)


@EXAMPLES
@given(servers, st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200))
def test_no_server_gets_more_than_its_part(
    servers: tuple[str, ...], steps: list[tuple[int, bool]]
) -> None:
    """Calls begin, for few adapters, so that some are hot, and end in any order."""
    loads: Counter[str] = Counter()
    under_way: list[str] = []
    for number, ends in steps:
        if ends and under_way:
            loads[under_way.pop(number % len(under_way))] -= 1
            continue
        most = bound(len(under_way), len(servers))
        server = first_within(order(ADAPTERS[number % 3], servers), loads.__getitem__)
        loads[server] += 1
        under_way.append(server)
        assert loads[server] <= most
        assert most <= max(MIN_BOUND, LOAD_FACTOR * len(under_way) / len(servers) + 1)


@EXAMPLES
@given(servers, st.integers(1, 200))
def test_one_hot_adapter_takes_no_more_servers_than_it_needs(
    servers: tuple[str, ...], num_calls: int
) -> None:
    loads: Counter[str] = Counter()
    ordered = order("hot", servers)
    for _ in range(num_calls):
        loads[first_within(ordered, loads.__getitem__)] += 1
    used = [server for server in ordered if loads[server]]
    assert used == list(ordered[: len(used)])
    assert len(used) == 1 or num_calls > MIN_BOUND
    full = bound(num_calls - 1, len(servers))
    assert len(used) <= -(-num_calls // max(1, full - 1)) + 1


def test_who_has_as_many_calls_takes_turns() -> None:
    loads = {"a": 1, "b": 0, "c": 0}
    assert {least_loaded(loads, loads.__getitem__, turn) for turn in range(3)} == {"b", "c"}
