"""A linear layer with an adapter's own weight: its definition in plain torch.

Legend: T tokens, K input width, N output width.
"""

from typing import Protocol

import torch

_ROWS = 2048
"""Rows of a weight that are widened at a time."""


class SavedLinear(Protocol):
    """Such a layer, without a bias. Like a tensor it has `nbytes` and `to`."""

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `x_TK @ weight.T` as [T, N], in the dtype of the input."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as stored."""

    def to(self, device: torch.device) -> "SavedLinear":
        """Return the layer on `device`."""


class WidenedLinear:
    """Stores its weight as it is, and widens it piece by piece if the input is wider."""

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
    """Return the layer with `weight_NK`, which has the dtype of the input, stored in `dtype`.

    `dtype` has to represent it exactly.
    """
    return WidenedLinear(weight_NK.to(dtype))
