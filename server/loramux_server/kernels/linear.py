"""A linear layer with frozen weights: its definition in plain torch.

Legend: T tokens, K input width, N output width.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

from loramux_server.kernels.weight_storage import Quantization, quantize, widened

Lookup: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Row indices, [T] -> these rows of the weight, [T, K], float32."""


class Linear(Protocol):
    """A linear layer, ready to be called; it owns its weights, in a layout of its own."""

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `x_TK @ weight.T + bias` as [T, N]."""

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return rows `start` to `end` of the weight, [rows, K], float32 on the device.

        Raises:
            ValueError: The layer cannot return its weight.
        """

    @property
    def lookup(self) -> Lookup | None:
        """Returns exact rows of the weight from the layer's own copy; None if it cannot."""


class PlainLinear:
    """A linear layer that keeps its weights as they are."""

    lookup = None

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        self._weight_NK = weight_NK
        self._bias_N = bias_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `x_TK @ weight.T + bias` as [T, N]."""
        return torch.nn.functional.linear(x_TK, self._weight_NK, self._bias_N)

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return rows `start` to `end` of the weight."""
        return self._weight_NK[start:end].float()


def make_linear(
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    quantization: Quantization = Quantization.NONE,
) -> Linear:
    """Return the layer with these weights, rounded according to `quantization`."""
    if quantization is not Quantization.NONE:
        rounded_NK = widened(*quantize(weight_NK.float(), quantization))
        weight_NK = rounded_NK.to(weight_NK.dtype)
    return PlainLinear(weight_NK, bias_N)
