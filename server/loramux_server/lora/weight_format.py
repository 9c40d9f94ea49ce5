"""How an adapter's weights rest in memory: as they were saved.

What was trained and saved in 16 bits takes half the room and half the bandwidth of float32, and
loses nothing, because both widen to float32 exactly where they are used.
"""

import enum

import torch


class WeightFormat(enum.IntEnum):
    """A number format; kernels go by its number."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

    @property
    def dtype(self) -> torch.dtype:
        """The format as torch calls it."""
        return _DTYPES[self]

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight."""
        return self.dtype.itemsize


_DTYPES = {
    WeightFormat.FLOAT32: torch.float32,
    WeightFormat.BFLOAT16: torch.bfloat16,
    WeightFormat.FLOAT16: torch.float16,
}
FORMATS = {"F32": WeightFormat.FLOAT32, "BF16": WeightFormat.BFLOAT16, "F16": WeightFormat.FLOAT16}
"""The names of the safetensors format."""
