"""How one weight was saved quantized, and how it is dequantized.

Legend: N output width, K input width, G groups of inputs that share a scale.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

Parts = Mapping[str, torch.Tensor]
"""Name of a tensor within its layout -> the tensor; all on one device."""
_NUMBERS = 1 << 20
"""About how many elements are dequantized at a time: 4 MiB as float32, which fits caches."""
_STEP = 32
"""The most numbers that are packed into 32 bits."""


class Slice(Protocol):
    """A tensor in a file of which only the header has been read, as safetensors returns it."""

    def get_shape(self) -> list[int]:
        """Return its shape."""

    def get_dtype(self) -> str:
        """Return safetensors' name of its dtype, such as F16 or I32."""

    def __getitem__(self, index: Any) -> torch.Tensor:  # noqa: ANN401
        """Read a part of it from the file; `...` is all of it."""


Slices = Mapping[str, Slice]
"""Name -> tensor in a file."""


class Layout(Protocol):
    """The layout of one saved weight; only shapes have been read."""

    shape: tuple[int, ...]
    """The shape of the weight, [..., N, K]."""

    def rows(self, parts: Parts, start: int, end: int) -> torch.Tensor:
        """Return its outputs `start` to `end`, [..., end - start, K], float32.

        `start` is a multiple of 32, and so is `end` unless it is N.
        """


class Dequantized:
    """A weight that is dequantized when it is read."""

    def __init__(
        self, layout: Layout, slices: Slices, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Wrap the weight in `slices`, saved in `layout`, to be read as `dtype` on `device`."""
        self._layout = layout
        self._slices = slices
        self._dtype = dtype
        self._device = device

    def __getitem__(self, index: Any) -> torch.Tensor:  # noqa: ANN401
        """Return a part of the weight; all of it is dequantized, a block of rows at a time."""
        *leading, outputs, width = self._layout.shape
        parts = {name: part[...].to(self._device) for name, part in self._slices.items()}
        weight = torch.empty(self._layout.shape, dtype=self._dtype, device=self._device)
        per_output = max(1, width * torch.Size(leading).numel())
        step = max(1, _NUMBERS // per_output // _STEP) * _STEP
        for start in range(0, outputs, step):
            end = min(start + step, outputs)
            weight[..., start:end, :] = self._layout.rows(parts, start, end)
        found: torch.Tensor = weight[index]
        return found


def expect(name: str, found: Slice, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Check that the saved tensor `found` has this `shape` and one of `dtypes`.

    Raises:
        ValueError: It does not.
    """
    saved = found.get_shape()
    if tuple(saved) != shape:
        raise ValueError(f"its tensor {name} has shape {saved}; expected {list(shape)}")
    if found.get_dtype() not in dtypes:
        raise ValueError(
            f"its tensor {name} has dtype {found.get_dtype()}; expected {' or '.join(dtypes)}"
        )


def group_size(name: str, width: int, groups: int, from_config: int | None) -> int:
    """Return how many of `width` inputs are in each of `groups`.

    Args:
        name: Name of the tensor that has a scale per group.
        width: Number of inputs.
        groups: Number of groups.
        from_config: Inputs per group according to the config; a layer may differ from it.

    Raises:
        ValueError: The inputs cannot be divided evenly.
    """
    if from_config is not None and from_config > 0 and -(-width // from_config) == groups:
        return from_config
    if groups > 0 and width % groups == 0:
        return width // groups
    raise ValueError(
        f"its tensor {name} has {groups} groups, into which {width} inputs cannot be divided evenly"
    )


def groups_of(name: str, index_K: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the saved group of each input, [K], int64.

    Raises:
        ValueError: A group number is out of range.
    """
    low, high = (int(each) for each in torch.aminmax(index_K))
    if low < 0 or high >= groups:
        raise ValueError(
            f"its tensor {name} has groups {low} to {high}; expected 0 to {groups - 1}"
        )
    return index_K.long()
