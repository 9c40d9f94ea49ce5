"""KV blocks: who holds which, and how many are left.

Knows nothing of tensors: a block is an integer. The model runner owns the memory.
"""


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks and block_size must be positive, not {num_blocks} and {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))

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
        table.extend(self._free.pop() for _ in range(missing))
        return True

    def release(self, table: list[int]) -> None:
        """Take back every block of `table` and empty it."""
        self._free.extend(reversed(table))
        table.clear()

    def check(self, tables: list[list[int]]) -> None:
        """Assert that every block is free or in exactly one of `tables`."""
        held = [block for table in tables for block in table]
        assert sorted(self._free + held) == list(range(self.num_blocks)), "blocks leaked or shared"
