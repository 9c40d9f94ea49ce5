"""Allocates rank rows to adapters, in contiguous runs.

An adapter of rank r takes r rows if its weights have the width that the rows are sized for, and
half as many if they are half as wide, rounded up to a granule. One allocator serves all layers: a
row index means the same row in each.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

GRANULE = 8


@dataclass(frozen=True, slots=True)
class RowSize:
    """The size of a rank row."""

    num_bytes: int = 1
    """Bytes of a row over all layers."""
    item_bytes: int = 4
    """Bytes per weight that rows are sized for."""

    def rows_of(self, rank: int, item_bytes: int = 4, edit_bytes: int = 0) -> int:
        """Return how many rows an adapter of `rank` takes: at least one granule.

        Args:
            rank: The largest of its ranks.
            item_bytes: Bytes per weight of the adapter.
            edit_bytes: Bytes of its edits. Factors and shifts of outputs are stored in the rows
                that this adds; other edits are stored elsewhere, and these rows, of as many bytes,
                stay unused to account for them.
        """
        granules = max(1, -(-rank * item_bytes // (self.item_bytes * GRANULE)))
        return GRANULE * (granules - (-edit_bytes // (self.num_bytes * GRANULE)))


class RowAllocator:
    """Allocates contiguous runs out of `capacity` rows: best fit, low rows first."""

    def __init__(self, num_rows: int) -> None:
        self.capacity = num_rows // GRANULE * GRANULE
        self.num_used = 0
        """Allocated rows."""
        self._runs: dict[str, tuple[int, int]] = {}
        """Key -> (start, end) of its run."""
        self._free_end: dict[int, int] = {}
        """Start -> end of each free run; `_free_start` is the inverse."""
        self._free_start: dict[int, int] = {}
        if self.capacity:
            self._add_free(0, self.capacity)

    def start_of(self, key: str) -> int:
        """Return the first row of `key`'s run."""
        return self._runs[key][0]

    def allocate(self, key: str, size: int) -> bool:
        """Allocate `size` rows to `key`; return False, unchanged, if no free run is long enough."""
        start = self._best_fit(size)
        if start is None:
            return False
        end = self._remove_free(start)
        if end > start + size:
            self._add_free(start + size, end)
        self._runs[key] = start, start + size
        self.num_used += size
        return True

    def release(self, key: str) -> None:
        """Free the run of `key`, and merge it with free neighbours."""
        start, end = self._runs.pop(key)
        self.num_used -= end - start
        if start in self._free_start:
            start = self._free_start[start]
            self._remove_free(start)
        if end in self._free_end:
            end = self._remove_free(end)
        self._add_free(start, end)

    def victims(self, size: int, order: Iterable[str], pinned: Collection[str]) -> list[str] | None:
        """Return the keys to evict for a free run of `size` rows; None if that is impossible.

        Their runs are adjacent, the set is minimal, and its last member is as early in `order` as
        possible.

        Args:
            size: Contiguous rows that are needed.
            order: All keys with runs, in eviction order.
            pinned: Keys that must stay; may include keys without a run.
        """
        if self._best_fit(size) is not None:
            return []
        if not self._has_gap(size, pinned):
            return None
        age: dict[str, int] = {}
        # Runs that are free after evicting the keys so far, by either end; neighbours are merged.
        start_by_end: dict[int, int] = {}
        end_by_start: dict[int, int] = {}
        for key in order:
            if key in pinned:
                continue
            age[key] = len(age)
            start, end = self._runs[key]
            start = start_by_end.get(start, self._free_start.get(start, start))
            end = end_by_start.get(end, self._free_end.get(end, end))
            start_by_end[end], end_by_start[start] = start, end
            if end - start >= size:
                return self._needed(size, start, end, age)
        return None

    def check(self, keys: Collection[str]) -> None:
        """Assert that exactly `keys` have runs, and that all runs cover each row once."""
        assert self._runs.keys() == set(keys), "rows leaked"
        assert self._free_start == {end: start for start, end in self._free_end.items()}
        at = 0
        was_free = False
        for start, end in sorted([*self._free_end.items(), *self._runs.values()]):
            assert start == at < end, "runs overlap or leave a gap"
            assert not (was_free and start in self._free_end), "free neighbours are not joined"
            was_free = start in self._free_end
            at = end
        assert at == self.capacity, "rows are lost"
        assert self.num_used == sum(end - start for start, end in self._runs.values())

    def _best_fit(self, size: int) -> int | None:
        fitting = [(end - start, start) for start, end in self._free_end.items()]
        return min((fit for fit in fitting if fit[0] >= size), default=(0, None))[1]

    def _has_gap(self, size: int, pinned: Collection[str]) -> bool:
        """Return whether `size` contiguous rows are free of `pinned` keys."""
        at = 0
        runs = sorted(self._runs[key] for key in pinned if key in self._runs)
        for start, end in [*runs, (self.capacity, self.capacity)]:
            if start - at >= size:
                return True
            at = end
        return False

    def _needed(self, size: int, start: int, end: int, age: dict[str, int]) -> list[str]:
        """Return a minimal set of keys of `age` to evict for `size` rows in `start` to `end`."""
        inside = sorted(
            (key for key in age if start <= self._runs[key][0] < end), key=self.start_of
        )
        while True:
            first, last = inside[0], inside[-1]
            spared = []
            if end - self._runs[first][1] >= size:
                spared.append(first)
            if self._runs[last][0] - start >= size:
                spared.append(last)
            if not spared:
                return inside
            latest = max(spared, key=age.__getitem__)
            inside.remove(latest)
            if latest == first:
                start = self._runs[first][1]
            else:
                end = self._runs[last][0]

    def _add_free(self, start: int, end: int) -> None:
        self._free_end[start], self._free_start[end] = end, start

    def _remove_free(self, start: int) -> int:
        end = self._free_end.pop(start)
        del self._free_start[end]
        return end
