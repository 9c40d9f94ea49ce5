"""An allocator that only counts bytes, without addresses."""

from collections.abc import Collection, Iterable


class ByteBudget:
    """Allocates up to `capacity` bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.capacity = num_bytes
        self.num_used = 0
        """Allocated bytes."""
        self._sizes: dict[str, int] = {}

    def allocate(self, key: str, size: int) -> bool:
        """Allocate `size` bytes to `key`; return False, unchanged, if fewer are left."""
        if self.num_used + size > self.capacity:
            return False
        self._sizes[key] = size
        self.num_used += size
        return True

    def release(self, key: str) -> None:
        """Free the bytes of `key`."""
        self.num_used -= self._sizes.pop(key)

    def victims(self, size: int, order: Iterable[str], pinned: Collection[str]) -> list[str] | None:
        """Return the keys to evict for `size` free bytes; None if that is impossible.

        The set is minimal, and its last member is as early in `order` as possible.

        Args:
            size: Bytes that are needed.
            order: All keys with bytes, in eviction order.
            pinned: Keys that must stay; may include keys without bytes.
        """
        if sum(self._sizes.get(key, 0) for key in pinned) + size > self.capacity:
            return None
        lacking = self.num_used + size - self.capacity
        victims: list[str] = []
        for key in order:
            if lacking <= 0:
                break
            if key not in pinned:
                victims.append(key)
                lacking -= self._sizes[key]
        for key in reversed(victims):
            if lacking + self._sizes[key] <= 0:
                victims.remove(key)
                lacking += self._sizes[key]
        return victims

    def check(self, keys: Collection[str]) -> None:
        """Assert that exactly `keys` have bytes, within the capacity."""
        assert self._sizes.keys() == set(keys), "bytes leaked"
        assert self.num_used == sum(self._sizes.values()) <= self.capacity
