"""How an adapter's weights rest in memory: as they were saved.

What was trained and saved in 16 bits takes half the room and half the bandwidth of float32, and
loses nothing, because both widen to float32 exactly where they are used.
"""

import enum
from dataclasses import dataclass

from loramux_adapters import Package


class WeightFormat(enum.IntEnum):
    """A number format; kernels go by its number."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight."""
        return 4 if self is WeightFormat.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class Resting:
    """In which format an adapter rests."""

    form: WeightFormat
    is_only: bool = False
    """Whether every adapter takes `form`, and not just one that was saved in float32."""

    @property
    def row_item_bytes(self) -> int:
        """Bytes of a weight in a slab for such adapters: of the widest that it may hold."""
        return self.form.item_bytes if self.is_only else WeightFormat.FLOAT32.item_bytes

    def of(self, saved: WeightFormat) -> WeightFormat:
        """Return the format of an adapter that was saved in `saved`."""
        return self.form if self.is_only or saved is WeightFormat.FLOAT32 else saved

    def item_bytes(self, saved: int) -> int:
        """Return the bytes of a weight of an adapter that was saved with `saved` bytes."""
        return self.form.item_bytes if self.is_only else min(saved, self.form.item_bytes)


AS_SAVED = Resting(WeightFormat.FLOAT32)
ROUNDINGS = {
    "auto": WeightFormat.FLOAT32,
    "bfloat16": WeightFormat.BFLOAT16,
    "float16": WeightFormat.FLOAT16,
}
"""Names in the config -> what becomes of an adapter that would rest in float32."""
FORMATS = {"F32": WeightFormat.FLOAT32, "BF16": WeightFormat.BFLOAT16, "F16": WeightFormat.FLOAT16}
"""The names of the safetensors format."""


def format_of(package: Package) -> WeightFormat:
    """Return the format in which an adapter rests: that of its file, if that has only one."""
    changes = package.contents.low_rank
    found = {tensor.dtype for change in changes for tensor in (change.a, change.b)}
    return FORMATS[found.pop()] if len(found) == 1 else WeightFormat.FLOAT32
