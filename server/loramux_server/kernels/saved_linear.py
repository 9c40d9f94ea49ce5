"""A linear layer with the weight of an adapter: its definition in plain torch.

Legend: T tokens, K input width, N output width.
"""

from typing import Protocol

import torch

_ROWS = 2048
"""So many rows of a weight are widened at a time."""


class SavedLinear(Protocol):
    """Such a layer. It has no bias, and is counted and moved as a tensor is."""

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `x_TK @ weight.T` as [T, N], in the number format of the input."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it rests."""

    def to(self, device: torch.device) -> "SavedLinear":
        """Return the layer on `device`."""


class WidenedLinear:
    """Its weight lies as it is, and is widened piece by piece if the input is wider."""

    def __init__(self, weight_NK: torch.Tensor) -> None:
        self._weight_NK = weight_NK

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `x_TK @ weight.T` as [T, N]."""
        weight_NK = self._weight_NK
        if weight_NK.dtype == x_TK.dtype:
            return torch.nn.functional.linear(x_TK, weight_NK)
        pieces = torch.split(weight_NK, _ROWS)
        return torch.cat(
            [torch.nn.functional.linear(x_TK, piece.to(x_TK.dtype)) for piece in pieces], dim=1
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self._weight_NK.nbytes

    def to(self, device: torch.device) -> "WidenedLinear":
        """Return the layer on `device`."""
        return WidenedLinear(self._weight_NK.to(device))


def make_saved_linear(weight_NK: torch.Tensor, dtype: torch.dtype) -> SavedLinear:
    """Return the layer with a weight in the format of its input, which is to rest in `dtype`.

    That has to hold it exactly.
    """
    return WidenedLinear(weight_NK.to(dtype))
