"""A tensor of a base model, as described by the header of its file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BaseTensor:
    """Location, dtype and shape of one tensor of the base."""

    file: str
    """Name of the file in the model's folder."""
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte, from the start of the file."""
    num_bytes: int
