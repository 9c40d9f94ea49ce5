"""KV blocks: who holds which, which can be shared as a prefix, and how many are free.

Knows nothing of tensors: a block is an integer. The model runner owns the memory. A full block can
be named by a hash of all tokens up to its end. Requests with the same prefix then share it, and it
stays cached after its last holder until it is needed; the least recently released goes first.
"""

from collections.abc import Sequence
from itertools import chain

from loramux_server.engine.named_pool import NamedPool


class BlockManager:
    """Allocates `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks and block_size must be positive, got {num_blocks} and {block_size}"
            )
        self.block_size = block_size
        self._pool = NamedPool(range(num_blocks))

    @property
    def num_used(self) -> int:
        """Blocks with a holder."""
        return self._pool.num_used

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Extend `table` to hold `num_tokens` tokens; False, and no change, if too few are free."""
        missing = self._num_missing(table, num_tokens)
        if missing > self._pool.num_free:
            return False
        for _ in range(missing):
            table.append(self._pool.take())
        return True

    def grow_spare(self, table: list[int], num_tokens: int) -> bool:
        """Do what `grow` does, but without evicting cached blocks."""
        has_spare = self._pool.has_nameless(self._num_missing(table, num_tokens))
        return has_spare and self.grow(table, num_tokens)

    def shrink(self, table: list[int], num_tokens: int) -> None:
        """Release the blocks of `table` beyond those that hold `num_tokens` tokens."""
        kept = -(-num_tokens // self.block_size)
        self.release(table[kept:])
        del table[kept:]

    def is_known(self, name: bytes) -> bool:
        """Return whether a block of that name is cached or in use."""
        return self._pool.find(name) is not None

    def known(self, names: Sequence[bytes]) -> list[int]:
        """Return the blocks of a prefix that are cached or in use, up to the first miss.

        Args:
            names: Names of the full blocks of the prefix, in order.
        """
        blocks: list[int] = []
        for name in names:
            block = self._pool.find(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def can_begin(self, shared: Sequence[int], num_tokens: int) -> bool:
        """Return whether enough blocks are free for `begin`."""
        waking = sum(self._pool.is_free(block) for block in shared)
        return self._num_missing(shared, num_tokens) <= self._pool.num_free - waking

    def begin(self, shared: Sequence[int], num_tokens: int) -> list[int]:
        """Return a new table for `num_tokens` tokens; see `can_begin`.

        Args:
            shared: The shared blocks with which it begins; see `known`.
            num_tokens: Tokens that it has to hold.
        """
        for block in shared:
            self._pool.hold(block)
        table = list(shared)
        has_grown = self.grow(table, num_tokens)
        assert has_grown, "begin without can_begin"
        return table

    def name(self, block: int, name: bytes) -> None:
        """Make a full block findable by `name`; the first block of a name keeps it."""
        self._pool.name(block, name)

    def release(self, table: list[int]) -> None:
        """Release every block of `table` and empty it."""
        # Backwards, so that the end of a prefix is evicted before its more widely shared beginning.
        for block in reversed(table):
            self._pool.release(block)
        table.clear()

    def check(self, tables: Sequence[list[int]]) -> None:
        """Assert that every block is free or in as many of `tables` as it has holders."""
        self._pool.check(chain.from_iterable(tables))

    def _num_missing(self, table: Sequence[int], num_tokens: int) -> int:
        """Return how many more blocks `table` needs to hold `num_tokens` tokens."""
        return max(0, -(-num_tokens // self.block_size) - len(table))
