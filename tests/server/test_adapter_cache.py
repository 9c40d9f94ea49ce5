"""What rests where, and what has to go; no tensors, no files."""

import gc
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from loramux_server.lora.adapter_cache import AdapterCache, LoadOrder, Tier
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.use import Waiter
from loramux_server.wire.adapter_source import AdapterSource


def source(name: str, rank: int = 8) -> AdapterSource:
    return AdapterSource(name, "", rank, 10 * rank)


def cache(rows: int = 16, host_bytes: int = 1000, **options: Any) -> AdapterCache:
    return AdapterCache(device_rows=rows, row_size=RowSize(5), host_bytes=host_bytes, **options)


def settle(subject: AdapterCache, urgent: str | None = None) -> None:
    """Do every load that the cache asks for."""
    while orders := subject.plan_loads(urgent):
        for order in orders:
            subject.loaded(order)
        subject.check()


def use(subject: AdapterCache, *names: str) -> None:
    """Have a request for each of `names` come, run and end."""
    for name in names:
        subject.want(source(name))
        settle(subject)
        assert subject.acquire(name)
        subject.release(name)


def residents(subject: AdapterCache, *names: str) -> list[str]:
    """Return those of `names` that a request would find on the device."""
    found = []
    for name in names:
        subject.want(source(name))
        if subject.acquire(name):
            subject.release(name)
            found.append(name)
        else:
            subject.unwant(name)
    return found


def test_the_least_recently_used_goes_first() -> None:
    subject = cache(rows=16)
    use(subject, "a", "b", "a", "c")
    assert residents(subject, "a", "b", "c") == ["a", "c"]


def test_an_adapter_in_use_is_never_evicted() -> None:
    subject = cache(rows=16)
    subject.want(source("a"))
    settle(subject)
    assert subject.acquire("a")
    use(subject, "b", "c", "d")
    row = subject.row_of("a")
    subject.want(source("e", rank=16))
    settle(subject, urgent="e")
    assert not subject.acquire("e")  # it needs the room of "a", too
    assert subject.row_of("a") == row


def test_what_others_wait_for_yields_only_to_the_urgent() -> None:
    subject = cache(rows=8)
    subject.want(source("a"))
    settle(subject)
    subject.want(source("b"))
    settle(subject)
    assert not subject.acquire("b")
    settle(subject, urgent="b")
    assert subject.acquire("b")
    assert not subject.acquire("a")


def test_a_load_is_in_flight_once() -> None:
    subject = cache()
    subject.want(source("a"))
    subject.want(source("a"))
    (order,) = subject.plan_loads()
    assert order.tier is Tier.HOST
    assert subject.plan_loads() == []
    subject.loaded(order)
    (order,) = subject.plan_loads()
    assert order.tier is Tier.DEVICE
    assert subject.plan_loads() == []


def test_a_failed_load_leaves_nothing_reserved() -> None:
    subject = cache()
    subject.want(source("a"))
    (order,) = subject.plan_loads()
    subject.unwant("a")
    subject.failed(order)
    subject.check()
    assert subject.stats(Tier.HOST).used_bytes == 0
    assert subject.stats(Tier.HOST).resident == 0


def test_the_host_tier_keeps_to_its_bytes() -> None:
    subject = cache(rows=8, host_bytes=200)
    use(subject, "a", "b", "c", "d")  # 80 bytes each
    assert subject.stats(Tier.HOST).resident == 2
    assert subject.stats(Tier.HOST).used_bytes == 160
    assert subject.stats(Tier.HOST).evictions == 2
    assert subject.held(Tier.HOST) == {"c", "d"}


def test_hits_and_misses_are_counted_per_tier() -> None:
    subject = cache(rows=8)
    use(subject, "a", "a", "b", "a")
    device, host = subject.stats(Tier.DEVICE), subject.stats(Tier.HOST)
    assert (device.hits, device.misses) == (1, 3)
    assert (host.hits, host.misses) == (1, 2)  # "a" was still packed when it came back
    assert device.evictions == 2


def test_a_dropped_adapter_leaves_both_tiers_unless_it_is_in_use() -> None:
    subject = cache()
    use(subject, "a")
    subject.want(source("b"))
    settle(subject)
    subject.acquire("b")
    assert subject.drop("a")
    assert not subject.drop("b")
    subject.check()
    assert subject.held(Tier.DEVICE) == subject.held(Tier.HOST) == {"b"}
    assert subject.row_of("b") >= 0


def test_what_can_never_fit_is_known_beforehand() -> None:
    subject = cache(rows=16, host_bytes=100)
    assert subject.fits(source("a", rank=10))
    assert not subject.fits(source("a", rank=17))  # 24 rows
    assert not subject.fits(source("a", rank=11))  # 110 bytes


def test_the_urgent_gets_its_room_though_others_keep_coming() -> None:
    subject = cache(host_bytes=100)
    subject.want(source("x", rank=3))
    subject.want(source("y", rank=3))
    flying = subject.plan_loads()
    subject.want(source("urgent"))
    for _ in range(10):
        subject.loaded(flying.pop(0))  # one is always on its way when there is a place for the next
        flying += subject.plan_loads(urgent="urgent")
        if "urgent" in [order.source.digest for order in flying]:
            return
    raise AssertionError("it never starts to load")


def test_nothing_goes_for_a_load_that_cannot_start() -> None:
    subject = cache(rows=32)
    use(subject, "a", "pinned", "b", "c")  # at rows 0, 8, 16 and 24
    subject.want(source("pinned"))
    assert subject.acquire("pinned")
    subject.want(source("wide", rank=24))
    settle(subject)
    settle(subject, urgent="wide")
    assert not subject.acquire("wide")
    assert residents(subject, "a", "b", "c") == ["a", "b", "c"]
    subject.release("pinned")
    settle(subject)
    assert subject.acquire("wide")


def test_nothing_goes_from_the_host_for_a_load_that_cannot_start() -> None:
    subject = cache(host_bytes=100)
    use(subject, "a")
    subject.want(source("on its way", rank=2))
    assert len(subject.plan_loads()) == 1
    subject.want(source("large", rank=9))
    assert subject.plan_loads() == []
    assert subject.stats(Tier.HOST).evictions == 0


def test_only_what_makes_the_room_goes() -> None:
    subject = cache(rows=32)
    use(subject, "a", "b", "c", "d", "b")  # "a" is the oldest, but no neighbour of "c"
    subject.want(source("wide", rank=16))
    settle(subject)
    assert subject.acquire("wide")
    assert residents(subject, "a", "b", "c", "d") == ["a", "b"]


def test_what_the_urgent_displaced_comes_next() -> None:
    subject = cache(rows=16)
    for name in ("a", "b"):
        subject.want(source(name))
    settle(subject)
    for name in ("late", "urgent"):
        subject.want(source(name, rank=16))
    settle(subject, urgent="urgent")
    assert subject.acquire("urgent")
    subject.release("urgent")
    settle(subject)
    assert subject.held(Tier.DEVICE) == {"a", "b"}


def test_a_tenants_adapters_are_loaded_in_order_of_priority() -> None:
    asked = [("a", "x", 5), ("b", "y", 9), ("c", "x", 5), ("d", "x", -1), ("e", "y", 0)]

    def loaded(urgent: str | None = None, without: int | None = None) -> list[str]:
        subject = cache(rows=64, max_loads=8)
        for name, tenant, priority in asked:
            subject.want(source(name), Waiter(tenant, priority))
        if without is not None:
            subject.unwant(asked[without][0], Waiter(*asked[without][1:]))
        orders = [order.source.digest for order in subject.plan_loads(urgent)]
        subject.check()
        return orders

    assert loaded() == ["d", "e", "a", "c", "b"]
    assert loaded("b") == ["b", "e", "d", "a", "c"]
    # Those of others keep their places, whatever priorities a tenant has.
    asked.append(("b", "x", -9))
    assert loaded() == ["b", "e", "d", "a", "c"]
    assert loaded(without=5) == ["d", "e", "a", "c", "b"]
    # Not even an adapter that it waits for as well, the less.
    asked = [("a", "x", 5), ("a", "y", 0), ("b", "x", 0)]
    assert loaded() == ["a", "b"]
    asked = [("a", "x", 5), ("a", "z", 5), ("b", "y", 0), ("c", "x", 0), ("d", "z", 0)]
    assert loaded() == ["c", "b", "a", "d"]


@given(data=st.data())
def test_the_urgent_is_loaded_whatever_the_others_do(data: st.DataObject) -> None:
    subject = cache(rows=48, host_bytes=500)
    others = [source(f"{rank}", rank) for rank in (1, 3, 8, 9, 16, 20, 24, 32)]
    waiting: list[tuple[str, Waiter]] = []
    waiters = [Waiter(tenant, priority) for tenant in ("", "x") for priority in (-1, 0)]
    leased: list[str] = []
    flying: list[LoadOrder] = []

    def go_on(urgent: str | None) -> None:
        """Let something happen."""
        action = data.draw(st.sampled_from(["come", "leave", "start", "end"]))
        if action == "come":
            other = data.draw(st.sampled_from(others))
            waiter = data.draw(st.sampled_from(waiters))
            subject.want(other, waiter)
            waiting.append((other.digest, waiter))
        elif action == "leave" and waiting:
            subject.unwant(*waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        elif action == "start" and waiting and not urgent and subject.acquire(*waiting[0]):
            leased.append(waiting.pop(0)[0])
        elif action == "end" and leased:
            subject.release(leased.pop())
        flying.extend(subject.plan_loads(urgent))
        if data.draw(st.booleans()) and flying:
            subject.loaded(flying.pop(data.draw(st.integers(0, len(flying) - 1))))
        subject.check()

    for _ in range(data.draw(st.integers(0, 30))):
        go_on(None)
    subject.want(source("urgent", data.draw(st.sampled_from([8, 40, 48]))))
    for _ in range(10):
        go_on("urgent")
    for digest in leased:
        subject.release(digest)
    leased.clear()
    for _ in range(8):  # at most two that fly, and then its own two with another beside each
        if subject.acquire("urgent"):
            return
        go_on("urgent")
        if flying:
            subject.loaded(flying.pop(0))
    raise AssertionError("its turn never comes")


def opcodes_of(call: Callable[[], object]) -> int:
    """Return how many instructions of Python `call` takes: its work, whatever the machine does."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # what it clears away may run Python too
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def full(num_resident: int, eviction: str) -> AdapterCache:
    """Return a cache that is full; "a0", which is the oldest, is leased."""
    subject = cache(rows=8 * num_resident, host_bytes=80 * num_resident, eviction=eviction)
    subject.want(source("a0"))
    settle(subject)
    assert subject.acquire("a0")
    use(subject, *(f"a{i}" for i in range(1, num_resident)))
    assert len(subject.held(Tier.DEVICE)) == len(subject.held(Tier.HOST)) == num_resident
    return subject


@pytest.mark.parametrize("urgent", [None, "too wide for now"])
def test_a_step_costs_the_same_however_many_adapters_are_resident(urgent: str | None) -> None:
    def step(subject: AdapterCache) -> None:
        assert subject.plan_loads(urgent) == []
        subject.want(source("a1"))
        assert subject.acquire("a1")
        subject.row_of("a1")
        subject.release("a1")
        subject.stats(Tier.DEVICE)
        subject.stats(Tier.HOST)

    costs = []
    for num_resident in (40, 400):
        subject = full(num_resident, "lru")
        subject.want(source("too wide for now", rank=8 * num_resident))
        settle(subject, urgent)
        costs.append(opcodes_of(partial(step, subject)))
    assert costs[0] == costs[1]


@pytest.mark.parametrize("eviction", ["lru", "cost"])
def test_a_load_costs_the_same_however_many_adapters_are_resident(eviction: str) -> None:
    def load(subject: AdapterCache) -> None:
        subject.want(source("new"))
        for _ in range(2):
            (order,) = subject.plan_loads()
            assert len(order.evicted) == 1
            subject.loaded(order)
        assert subject.acquire("new")

    costs = [opcodes_of(partial(load, full(size, eviction))) for size in (40, 400)]
    assert costs[0] == costs[1]
