"""Rows and bytes: who has them, and who has to go for others."""

from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from loramux_server.lora.byte_budget import ByteBudget
from loramux_server.lora.memory_tier import Allocator
from loramux_server.lora.row_allocator import RowAllocator, RowSize


def longest_gap(runs: Sequence[tuple[int, int]], num_rows: int) -> int:
    """Return the longest stretch of rows that none of `runs` (start, length) takes."""
    ends = [0, *(start + length for start, length in sorted(runs))]
    starts = [*sorted(start for start, _ in runs), num_rows]
    return max(start - end for end, start in zip(ends, starts, strict=True))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 70), st.integers(0, 20)), max_size=60))
def test_runs_of_rows_never_overlap_nor_leak(
    operations: list[tuple[bool, int, int]],
) -> None:
    rows = RowAllocator(203)
    held: dict[str, tuple[int, int]] = {}
    for number, (is_free, rank, index) in enumerate(operations):
        if is_free and held:
            key = sorted(held)[index % len(held)]
            rows.release(key)
            del held[key]
        else:
            key, size = str(number), RowSize().rows_of(rank)
            fits = longest_gap(list(held.values()), 200) >= size
            assert rows.allocate(key, size) == fits
            if fits:
                held[key] = rows.start_of(key), size
        rows.check(held)
        assert rows.num_used == sum(size for _, size in held.values())
    for key in held:
        rows.release(key)
    assert rows.allocate("all", 200)


def rows_fit(allocator: Allocator, kept: Sequence[str], sizes: dict[str, int], size: int) -> bool:
    assert isinstance(allocator, RowAllocator)
    runs = [(allocator.start_of(key), sizes[key]) for key in kept]
    return longest_gap(runs, allocator.capacity) >= size


def bytes_fit(allocator: Allocator, kept: Sequence[str], sizes: dict[str, int], size: int) -> bool:
    return sum(sizes[key] for key in kept) + size <= allocator.capacity


@pytest.mark.parametrize(
    ("make", "fits"), [(RowAllocator, rows_fit), (ByteBudget, bytes_fit)], ids=["rows", "bytes"]
)
@given(data=st.data())
def test_those_go_who_are_needed_and_were_not_used_for_longest(
    make: Callable[[int], Allocator],
    fits: Callable[[Allocator, Sequence[str], dict[str, int], int], bool],
    data: st.DataObject,
) -> None:
    allocator = make(96)
    sizes: dict[str, int] = {}
    for number, blocks in enumerate(data.draw(st.lists(st.integers(1, 4), max_size=14))):
        if allocator.allocate(str(number), 8 * blocks):
            sizes[str(number)] = 8 * blocks
    for key in data.draw(st.sets(st.sampled_from(sorted(sizes) or ["-"]))):
        if sizes.pop(key, None):
            allocator.release(key)
    order = data.draw(st.permutations(sorted(sizes)))
    pinned = data.draw(st.sets(st.sampled_from([*order, "elsewhere"])))
    size = 8 * data.draw(st.integers(1, 12))

    # As few of the oldest as could do, were all of them to go.
    movable = [key for key in order if key not in pinned]
    enough = next(
        (n for n in range(len(movable) + 1)
         if fits(allocator, [key for key in order if key not in movable[:n]], sizes, size)),
        None,
    )  # fmt: skip
    victims = allocator.victims(size, order, pinned)
    if enough is None:
        assert victims is None
        return
    assert victims is not None
    assert set(victims) <= set(movable[:enough])
    kept = [key for key in order if key not in victims]
    assert fits(allocator, kept, sizes, size)
    for key in victims:
        assert not fits(allocator, [*kept, key], sizes, size), "it went in vain"
    for key in victims:
        allocator.release(key)
    assert allocator.allocate("new", size)
    allocator.check([*kept, "new"])
