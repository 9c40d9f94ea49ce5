"""The activation functions of the `adapters` library."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "leakyrelu": nn.functional.leaky_relu,
    "linear": lambda x: x,
    "relu": nn.functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
}
"""By the names in `loramux_adapters.activations`."""
