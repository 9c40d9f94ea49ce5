"""Bottleneck adapters as edits of the modules that they stand behind.

What they mean is said in `loramux_adapters.bottleneck`.

Legend: T tokens, K width of the model, M width of the middle.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from loramux_adapters import Package
from loramux_adapters.bottleneck import BottleneckConfig, sites
from loramux_adapters.contents import Bottleneck
from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.edits import ModuleEdit
from loramux_server.lora.packed import LayerPlace

_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
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
_NORM_EPSILON = 1e-5


class Passage:
    """Where one edit leaves for another what went by, within a step."""

    def __init__(self) -> None:
        self._x_TK: torch.Tensor | None = None

    def leave(self, x: torch.Tensor) -> None:
        """Keep `x` until it is taken."""
        self._x_TK = x

    def take(self) -> torch.Tensor:
        """Return what was left, which is kept no longer."""
        assert self._x_TK is not None, "the norm in front did not run"
        x, self._x_TK = self._x_TK, None
        return x


@dataclass(frozen=True, slots=True)
class Tap:
    """Stands at the norm in front: leaves what came in, and changes nothing."""

    passage: Passage

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return `y` as it is."""
        self.passage.leave(x)
        return y


@dataclass(frozen=True, slots=True)
class Network:
    """Stands behind the layer that h comes out of, with x from the norm in front."""

    config: BottleneckConfig
    passage: Passage
    parts: Mapping[str, torch.Tensor]
    """As `Bottleneck.parts` names them, float32."""

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return what is added to what came in, in place of `y`."""
        config, parts = self.config, self.parts
        came_in_TK, h_TK = self.passage.take().float(), y.float()
        seen_TK = came_in_TK if config.is_parallel else h_TK
        if config.sees_sum and not config.is_parallel:
            seen_TK = h_TK + came_in_TK
        inner_TM = nn.functional.linear(seen_TK, parts["down.weight"], parts["down.bias"])
        inner_TM = _ACTIVATIONS[config.activation](inner_TM)
        out_TK = nn.functional.linear(inner_TM, parts["up.weight"], parts["up.bias"])
        out_TK = out_TK * (parts["scaling"] if config.scale is None else config.scale)
        if config.is_parallel:
            return h_TK + self._norm(out_TK)
        added_TK = seen_TK if config.adds_sum else h_TK
        if config.adds_before_norm:
            return self._norm(out_TK + added_TK)
        return self._norm(out_TK) + added_TK

    def _norm(self, x_TK: torch.Tensor) -> torch.Tensor:
        weight = self.parts.get("norm.weight")
        if weight is None:
            return x_TK
        bias = self.parts["norm.bias"]
        return nn.functional.layer_norm(x_TK, weight.shape, weight, bias, _NORM_EPSILON)


def pack_bottlenecks(
    package: Package,
    places: Mapping[str, LayerPlace],
    read: Callable[[TensorInfo], torch.Tensor],
) -> dict[str, ModuleEdit]:
    """Return the edits of the networks of `package`, by the modules that they stand at.

    Args:
        package: A package that fits the base.
        places: The layers of the base.
        read: Returns the values of a tensor.
    """
    edits: dict[str, ModuleEdit] = {}
    for bottleneck in package.contents.bottlenecks:
        assert isinstance(package.config, BottleneckConfig)
        norm, output = _site(bottleneck, places)
        passage = Passage()
        edits[norm] = Tap(passage)
        parts = {name: read(tensor) for name, tensor in bottleneck.parts.items()}
        edits[output] = Network(package.config, passage, parts)
    return edits


def _site(bottleneck: Bottleneck, places: Mapping[str, LayerPlace]) -> tuple[str, str]:
    found = sites(bottleneck.layer, bottleneck.place)
    return next((norm, output) for norm, output in found if output in places)
