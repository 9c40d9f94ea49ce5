"""What rests where, and what has to go; no tensors, no files."""

import hypothesis.strategies as st
from hypothesis import given

from loramux_server.engine.messages import AdapterSource
from loramux_server.lora.adapter_cache import AdapterCache, Tier
from loramux_server.lora.row_allocator import RowAllocator, rows_of


def source(name: str, rank: int = 8) -> AdapterSource:
    return AdapterSource(name, "", rank, 10 * rank)


def cache(rows: int = 16, host_bytes: int = 1000) -> AdapterCache:
    return AdapterCache(device_rows=rows, row_bytes=5, host_bytes=host_bytes, weight_bytes=1)


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
    assert sorted(subject.take_freed()) == ["a", "b"]


def test_hits_and_misses_are_counted_per_tier() -> None:
    subject = cache(rows=8)
    use(subject, "a", "a", "b", "a")
    device, host = subject.stats(Tier.DEVICE), subject.stats(Tier.HOST)
    assert (device.hits, device.misses) == (1, 3)
    assert (host.hits, host.misses) == (1, 2)  # "a" was still packed when it came back
    assert device.evictions == 2


def test_moves_are_told_once() -> None:
    subject = cache(rows=8)
    use(subject, "a", "b")
    assert subject.take_moved() == {"a": Tier.HOST, "b": Tier.DEVICE}
    assert subject.take_moved() == {}


def test_a_dropped_adapter_leaves_both_tiers_unless_it_is_in_use() -> None:
    subject = cache()
    use(subject, "a")
    subject.want(source("b"))
    settle(subject)
    subject.acquire("b")
    subject.drop("a")
    subject.drop("b")
    subject.check()
    assert subject.stats(Tier.DEVICE).resident == 1
    assert subject.row_of("b") >= 0


def test_what_can_never_fit_is_known_beforehand() -> None:
    subject = cache(rows=16, host_bytes=100)
    assert subject.fits(source("a", rank=10))
    assert not subject.fits(source("a", rank=17))  # 24 rows
    assert not subject.fits(source("a", rank=11))  # 110 bytes


def longest_gap(held: dict[int, int], num_rows: int) -> int:
    """Return the longest run of rows that none of `held` (start -> length) takes."""
    ends = [0, *(start + length for start, length in sorted(held.items()))]
    starts = [*sorted(held), num_rows]
    return max(start - end for end, start in zip(ends, starts, strict=True))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 70), st.integers(0, 20)), max_size=60))
def test_runs_of_rows_never_overlap_nor_leak(
    operations: list[tuple[bool, int, int]],
) -> None:
    rows = RowAllocator(203)
    held: dict[int, int] = {}
    for is_free, rank, index in operations:
        if is_free and held:
            start = sorted(held)[index % len(held)]
            rows.release(start)
            del held[start]
        else:
            found = rows.allocate(rank)
            assert (found is None) == (longest_gap(held, 200) < rows_of(rank))
            if found is not None:
                held[found] = rows_of(rank)
        rows.check()
        assert rows.num_used == sum(held.values())
    for start in held:
        rows.release(start)
    assert rows.allocate(200) == 0
