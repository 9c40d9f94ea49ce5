"""Linear layers that are not rows of weights: each is computed by its own module.

So are those of a base whose weights were quantised by torchao or bitsandbytes: what they keep, and
how they multiply with it, is known to them alone.

Legend: T tokens, K input width, N output width over all layers.
"""

from collections.abc import Sequence

import torch
from torch import nn


class OwnLinear:
    """Does what `loramux_server.kernels.linear.make_linear` defines, for several layers."""

    lookup = None

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the layers side by side, as [T, N]."""
        outputs = [layer(x_TK) for layer in self._layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Refuse: how the weights were rounded is known to the layers alone."""
        raise ValueError(f"rows {start} to {end} of a quantised layer's weight are not known")
