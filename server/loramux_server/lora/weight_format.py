"""How an adapter's weights rest in memory: as they were saved.

What was trained and saved in 16 bits takes half the room and half the bandwidth of float32, and
loses nothing, because both widen to float32 exactly where they are used.
"""

import enum


class WeightFormat(enum.IntEnum):
    """A number format; kernels go by its number."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight."""
        return 4 if self is WeightFormat.FLOAT32 else 2


ROUNDINGS = {
    "auto": WeightFormat.FLOAT32,
    "bfloat16": WeightFormat.BFLOAT16,
    "float16": WeightFormat.FLOAT16,
}
"""Names in the config -> what becomes of an adapter that would rest in float32."""
FORMATS = {"F32": WeightFormat.FLOAT32, "BF16": WeightFormat.BFLOAT16, "F16": WeightFormat.FLOAT16}
"""The names of the safetensors format."""
