"""Who leaves a tier first: by last use, by what it costs, by whose it is; and who comes back."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from loramux_server.lora.adapter_cache import AdapterCache, Tier
from loramux_server.lora.eviction import EVICTIONS, CostAware, Eviction
from loramux_server.lora.reloads import Reloads
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.shares import protected_adapters
from loramux_server.wire.adapter_source import AdapterSource


def brought(eviction: Eviction, digest: str, *, size: int, seconds: float, uses: int = 1) -> None:
    eviction.on_allocate(digest, size)
    eviction.on_load(digest, seconds)
    for _ in range(uses):
        eviction.on_use(digest)


def test_what_costs_least_for_its_room_goes_first() -> None:
    order = CostAware()
    brought(order, "slow", size=10, seconds=4.0)
    brought(order, "popular", size=10, seconds=1.0, uses=3)
    brought(order, "cheap", size=10, seconds=1.0)
    brought(order, "large", size=100, seconds=4.0)
    assert list(order.order()) == ["large", "cheap", "popular", "slow"]


def test_what_was_popular_once_goes_in_the_end() -> None:
    order = CostAware()
    brought(order, "old", size=1, seconds=1.0, uses=5)
    for number in range(10):
        brought(order, f"n{number}", size=1, seconds=1.0)
        first = next(iter(order.order()))
        if first == "old":
            return
        order.on_remove(first, is_evicted=True)
    raise AssertionError("it stays for ever")


def test_what_is_not_needed_makes_nobody_older() -> None:
    order = CostAware()
    brought(order, "dear", size=1, seconds=100.0)
    order.on_remove("dear", is_evicted=False)
    brought(order, "a", size=1, seconds=2.0)
    brought(order, "b", size=1, seconds=1.0)
    assert list(order.order()) == ["b", "a"]


@pytest.mark.parametrize("make", EVICTIONS.values(), ids=EVICTIONS)
def test_of_equals_the_least_recently_used_goes_first(make: Callable[[], Eviction]) -> None:
    order = make()
    for digest in "abc":
        brought(order, digest, size=8, seconds=0.5)
    for digest in "bac":
        order.on_use(digest)
    assert list(order.order()) == ["b", "a", "c"]


@pytest.mark.parametrize("make", EVICTIONS.values(), ids=EVICTIONS)
@given(steps=st.lists(st.tuples(st.sampled_from("cluge"), st.sampled_from("abcde"))))
def test_all_that_is_there_is_in_the_order_once(
    make: Callable[[], Eviction], steps: list[tuple[str, str]]
) -> None:
    order, there = make(), set()
    for what, digest in steps:
        if what == "c" and digest not in there:
            order.on_allocate(digest, 8)
            there.add(digest)
        elif digest in there:
            if what == "l":
                order.on_load(digest, 0.25)
            elif what == "u":
                order.on_use(digest)
            else:
                order.on_remove(digest, is_evicted=what == "e")
                there.remove(digest)
        found = list(order.order())
        assert (len(found), set(found)) == (len(there), there)


def source(name: str, tenant: str = "a", rank: int = 8) -> AdapterSource:
    return AdapterSource(name, "", rank, 10 * rank, tenant=tenant)


def use(subject: AdapterCache, *sources: AdapterSource, seconds: float = 1.0) -> None:
    """Have a request for each come, run and end; a load takes `seconds`."""
    for one in sources:
        subject.want(one)
        while orders := subject.plan_loads():
            for order in orders:
                subject.loaded(order, seconds)
            subject.check()
        assert subject.acquire(one.digest)
        subject.release(one.digest)


def cache(**options: object) -> AdapterCache:
    """A cache of four adapters."""
    return AdapterCache(device_rows=32, row_size=RowSize(5), host_bytes=10_000, **options)  # type: ignore[arg-type]


def test_both_tiers_keep_what_costs_most() -> None:
    for eviction, kept in (("cost", True), ("lru", False)):
        subject = AdapterCache(
            device_rows=32, row_size=RowSize(5), host_bytes=4 * 80, eviction=eviction
        )
        use(subject, source("dear"), seconds=9.0)
        use(subject, *(source(f"n{number}") for number in range(4)))
        assert ("dear" in subject.held(Tier.DEVICE)) is kept
        assert ("dear" in subject.held(Tier.HOST)) is kept


def test_who_has_its_share_pays_with_its_own() -> None:
    subject = cache(max_tenant_share=0.5)
    use(subject, source("b1", "b"), source("b2", "b"), source("a1"), source("a2"))
    use(subject, *(source(f"a{number}") for number in range(3, 9)))
    assert subject.held(Tier.DEVICE) == {"b1", "b2", "a7", "a8"}


def test_without_a_share_the_busy_take_all() -> None:
    subject = cache()
    use(subject, source("b1", "b"), *(source(f"a{number}") for number in range(1, 5)))
    assert subject.held(Tier.DEVICE) == {"a1", "a2", "a3", "a4"}


def test_who_has_more_than_its_share_gives_way_first() -> None:
    subject = cache(max_tenant_share=0.5)
    use(subject, source("b1", "b"), source("a1"), source("a2"), source("a3"))  # nothing lies idle
    assert subject.held(Tier.DEVICE) == {"b1", "a1", "a2", "a3"}
    use(subject, source("c1", "c"))  # though "b1" was not used for longer
    assert subject.held(Tier.DEVICE) == {"b1", "c1", "a2", "a3"}


def test_nobody_waits_for_a_share() -> None:
    subject = cache(max_tenant_share=0.25)
    use(subject, source("b1", "b"), source("b2", "b"), source("b3", "b"))
    subject.want(source("a1"))
    for order in [*subject.plan_loads()]:
        subject.loaded(order)
    for order in [*subject.plan_loads()]:
        subject.loaded(order)
    assert subject.acquire("a1")
    use(subject, source("a2"))  # its own is in use, so another one's goes
    assert {"a1", "a2"} < subject.held(Tier.DEVICE)


def test_shares_are_of_room_and_not_of_adapters() -> None:
    allocations = {"wide": ("a", 24), "one": ("b", 8), "two": ("b", 8)}
    assert protected_adapters(allocations, "a", 8, 24) == {"one", "two"}
    assert protected_adapters(allocations, "c", 8, 16) == {"one", "two"}
    assert protected_adapters(allocations, "c", 8, 24) == {"wide", "one", "two"}
    assert protected_adapters(allocations, "b", 8, 24) == {"wide", "one", "two"}


def test_what_comes_back_within_a_minute_is_counted() -> None:
    reloads = Reloads()
    for digest, now in (("a", 0.0), ("b", 50.0)):
        reloads.evicted(digest, now)
    reloads.loads("c", 60.0)
    assert reloads.count == 0
    reloads.loads("a", 60.0)
    reloads.loads("a", 60.0)  # that was once
    assert reloads.count == 1
    reloads.loads("b", 110.5)
    assert reloads.count == 1
    assert not reloads._evicted
