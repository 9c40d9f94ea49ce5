"""The storage format of an adapter's weights in memory: by default, as they were saved.

Weights saved in 16 bits take half the memory and bandwidth of float32. Nothing is lost, because
both 16-bit formats convert exactly to float32 where the weights are used.
"""

import enum
from dataclasses import dataclass

from loramux_adapters import Package


class WeightFormat(enum.IntEnum):
    """A number format; kernels use its value."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight."""
        return 4 if self is WeightFormat.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """The rule for the storage format of adapters."""

    form: WeightFormat
    is_only: bool = False
    """Whether every adapter is stored in `form`, not only those saved in float32."""

    @property
    def row_item_bytes(self) -> int:
        """Bytes of a weight in a slab: those of the widest format that it may hold."""
        return self.form.item_bytes if self.is_only else WeightFormat.FLOAT32.item_bytes

    def of(self, saved: WeightFormat) -> WeightFormat:
        """Return the storage format of an adapter that was saved in `saved`."""
        return self.form if self.is_only or saved is WeightFormat.FLOAT32 else saved

    def item_bytes(self, saved: int) -> int:
        """Return the bytes per weight in memory of an adapter saved with `saved` bytes each."""
        return self.form.item_bytes if self.is_only else min(saved, self.form.item_bytes)


AS_SAVED = StorageFormat(WeightFormat.FLOAT32)
ROUNDINGS = {
    "auto": WeightFormat.FLOAT32,
    "bfloat16": WeightFormat.BFLOAT16,
    "float16": WeightFormat.FLOAT16,
}
"""adapter_dtype of the config -> storage format of adapters that were saved in float32."""
FORMATS = {"F32": WeightFormat.FLOAT32, "BF16": WeightFormat.BFLOAT16, "F16": WeightFormat.FLOAT16}
"""safetensors dtype -> format."""


def format_of(package: Package) -> WeightFormat:
    """Return the format of all A and B in `package`; FLOAT32 if they are not all the same."""
    changes = package.contents.low_rank
    found = {tensor.dtype for change in changes for tensor in (change.a, change.b)}
    return FORMATS[found.pop()] if len(found) == 1 else WeightFormat.FLOAT32
