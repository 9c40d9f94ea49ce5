"""Linear layers without a plain weight matrix: each is computed by its own module.

This covers bases quantized by torchao or bitsandbytes, whose modules alone know their storage
format and kernels.

Legend: T tokens, K input width, N output width over all layers.
"""

from collections.abc import Sequence

import torch
from torch import nn


class ModuleLinear:
    """Implements `loramux_server.kernels.linear.Linear` for several layers."""

    lookup = None

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return the concatenated outputs of the layers, as [T, N]."""
        outputs = [layer(x_TK) for layer in self._layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Raise ValueError: only the layers know how their weights were quantized."""
        raise ValueError(f"rows {start} to {end} of a quantized layer's weight cannot be read")
