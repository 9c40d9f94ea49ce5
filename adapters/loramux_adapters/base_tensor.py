"""A tensor in the files of a base model, as their headers have it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BaseTensor:
    """Where one tensor of the base lies, and what it is."""

    file: str
    """Name of its file in the folder of the model."""
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte, counted from the start of the file."""
    num_bytes: int
