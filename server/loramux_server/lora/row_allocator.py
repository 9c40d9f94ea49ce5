"""Rank rows: which are free, and where an adapter's run of them begins.

An adapter of rank r takes r rows if its weights are float32 and half as many if they have 16 bits,
rounded up to a granule. One allocator serves every layer: a row number means the same row in each.
"""

GRANULE = 8


def rows_of(rank: int, item_bytes: int = 4) -> int:
    """Return how many rows an adapter of `rank` takes whose weights have `item_bytes` each."""
    return -(-rank * item_bytes // (4 * GRANULE)) * GRANULE


class RowAllocator:
    """Hands out contiguous runs of `num_rows` rows: best fit, low rows first."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows // GRANULE * GRANULE
        self._free: dict[int, int] = {0: self.num_rows} if self.num_rows else {}
        self._used: dict[int, int] = {}

    @property
    def num_used(self) -> int:
        """Rows that are handed out."""
        return sum(self._used.values())

    def allocate(self, rank: int) -> int | None:
        """Return the first row of a new run for `rank`; None if no free run is long enough."""
        size = rows_of(rank)
        fitting = [(length, start) for start, length in self._free.items() if length >= size]
        if not fitting:
            return None
        length, start = min(fitting)
        del self._free[start]
        if length > size:
            self._free[start + size] = length - size
        self._used[start] = size
        return start

    def release(self, start: int) -> None:
        """Take back the run that begins at `start`, joining it with its free neighbours."""
        size = self._used.pop(start)
        for before, length in self._free.items():
            if before + length == start:
                start, size = before, length + size
                break
        self._free[start] = size
        if (after := self._free.pop(start + size, None)) is not None:
            self._free[start] += after

    def check(self) -> None:
        """Assert that used and free runs cover all rows once, and that free runs are joined."""
        end = 0
        was_free = False
        for start, length in sorted((self._free | self._used).items()):
            assert start == end and length > 0, "runs overlap or leave a hole"
            assert not (was_free and start in self._free), "free neighbours are not joined"
            was_free = start in self._free
            end = start + length
        assert end == self.num_rows, "rows are lost"
