"""Bytes of a memory that has no places: who has how many of them."""

from collections.abc import Collection, Iterable


class ByteBudget:
    """Hands out `capacity` bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.capacity = num_bytes
        self.num_used = 0
        """Bytes that are handed out."""
        self._sizes: dict[str, int] = {}

    def allocate(self, key: str, size: int) -> bool:
        """Give `key` so many bytes; False, and no change, if fewer are left."""
        if self.num_used + size > self.capacity:
            return False
        self._sizes[key] = size
        self.num_used += size
        return True

    def release(self, key: str) -> None:
        """Take back the bytes of `key`."""
        self.num_used -= self._sizes.pop(key)

    def victims(self, size: int, order: Iterable[str], pinned: Collection[str]) -> list[str] | None:
        """Return who has to go for `size` bytes to be free; None if it is nobody's going.

        All of them are needed, and the last of them comes as early in `order` as can be.

        Args:
            size: Bytes that are needed.
            order: Everybody who has bytes, in the order in which they are to go.
            pinned: Those who cannot go; others may be among them.
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
        """Assert that `keys` have bytes, and nobody else, and no more than there are."""
        assert self._sizes.keys() == set(keys), "bytes leaked"
        assert self.num_used == sum(self._sizes.values()) <= self.capacity
