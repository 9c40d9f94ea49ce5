"""KV blocks: who holds which, which hold the beginning of what, and how many are left.

Knows nothing of tensors: a block is an integer. The model runner owns the memory. A full block can
be named after the tokens up to its end; then requests that begin with the same tokens share it, and
it is remembered after the last of them, until its room is needed: the oldest goes first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks and block_size must be positive, not {num_blocks} and {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._holders = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))
        """Blocks that nobody holds, in the order in which they are handed out."""
        self._name_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def num_missing(self, table: list[int], num_tokens: int) -> int:
        """Return how many more blocks `table` needs to hold `num_tokens` tokens."""
        return max(0, -(-num_tokens // self.block_size) - len(table))

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Extend `table` to hold `num_tokens` tokens; False, and no change, if blocks lack."""
        missing = self.num_missing(table, num_tokens)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._holders[block] = 1
            table.append(block)
        return True

    def grow_spare(self, table: list[int], num_tokens: int) -> bool:
        """Do what `grow` does, but not with blocks whose content others could still use."""
        missing = self.num_missing(table, num_tokens)
        # Blocks without a name are handed out first.
        spare = islice(self._free, missing)
        if missing > len(self._free) or any(block in self._name_of for block in spare):
            return False
        return self.grow(table, num_tokens)

    def shrink(self, table: list[int], num_tokens: int) -> None:
        """Take back the blocks of `table` beyond those that hold `num_tokens` tokens."""
        kept = -(-num_tokens // self.block_size)
        self.release(table[kept:])
        del table[kept:]

    def num_known(self, names: Sequence[bytes]) -> int:
        """Return how many of the full blocks at a beginning are there already."""
        return len(self._known(names))

    def can_begin(self, names: Sequence[bytes], num_tokens: int) -> bool:
        """Return whether `begin` has the room that it needs."""
        shared = self._known(names)
        waking = sum(block in self._free for block in shared)
        return self.num_missing(shared, num_tokens) <= len(self._free) - waking

    def begin(self, names: Sequence[bytes], num_tokens: int) -> tuple[list[int], int]:
        """Return a new table for `num_tokens` tokens, and how many of its blocks are shared.

        Args:
            names: Of the full blocks at its beginning, in order. Those that are known up to the
                first unknown one are shared.
            num_tokens: Tokens that the table has to hold; see `can_begin`.
        """
        table = self._known(names)
        num_shared = len(table)
        for block in table:
            self._free.pop(block, None)
            self._holders[block] += 1
        has_grown = self.grow(table, num_tokens)
        assert has_grown, "begin without can_begin"
        return table, num_shared

    def name(self, block: int, name: bytes) -> None:
        """Let a full block be found by `name`; the first block of a name keeps it."""
        if name not in self._block_of:
            self._forget(block)
            self._block_of[name] = block
            self._name_of[block] = name

    def release(self, table: list[int]) -> None:
        """Take back every block of `table` and empty it."""
        # Backwards, so that the end of a prefix goes before its beginning, which others may share.
        for block in reversed(table):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._name_of:
                    self._free.move_to_end(block, last=False)
        table.clear()

    def check(self, tables: list[list[int]]) -> None:
        """Assert that every block is free or in as many of `tables` as it has holders."""
        holders = [0] * self.num_blocks
        for table in tables:
            for block in table:
                holders[block] += 1
        assert holders == self._holders, "blocks leaked"
        free = {block for block, count in enumerate(holders) if not count}
        assert free == self._free.keys(), "blocks leaked or are free and held"
        assert {name: block for block, name in self._name_of.items()} == self._block_of

    def _known(self, names: Sequence[bytes]) -> list[int]:
        blocks: list[int] = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _forget(self, block: int) -> None:
        if name := self._name_of.pop(block, None):
            del self._block_of[name]
