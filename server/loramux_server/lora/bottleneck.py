"""Bottleneck adapters, as edits of the modules around the residual sum.

Their semantics are described in `loramux_adapters.bottleneck`: h is the output of attention or the
MLP, x the residual input to which it is added.

Legend: T tokens, K width of the model, M width of the bottleneck.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from loramux_adapters import Package
from loramux_adapters.bottleneck import BottleneckConfig
from loramux_adapters.bottleneck_sites import site_of
from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.activations import ACTIVATIONS
from loramux_server.lora.edits import ModuleEdit
from loramux_server.lora.packed_edits import BaseLayers

_NORM_EPSILON = 1e-5


class TensorStash:
    """Passes a tensor from one edit to another within a step.

    One tensor per greenlet: where texts are read whole, the texts of one adapter interleave.
    """

    def __init__(self) -> None:
        self._saved: WeakKeyDictionary[greenlet, torch.Tensor] = WeakKeyDictionary()

    def put(self, x: torch.Tensor) -> None:
        """Keep `x` until it is taken."""
        self._saved[getcurrent()] = x

    def take(self) -> torch.Tensor:
        """Remove and return the tensor that was left for the same text, in float32."""
        x = self._saved.pop(getcurrent(), None)
        assert x is not None, "the preceding module did not run"
        return x.float()


@dataclass(frozen=True, slots=True)
class SaveInput:
    """Saves the input of a module, and changes nothing."""

    stash: TensorStash

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return `y` unchanged."""
        self.stash.put(x)
        return y


@dataclass(frozen=True, slots=True)
class SaveOutput:
    """Saves the output of a module, and changes nothing."""

    stash: TensorStash

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return `y` unchanged."""
        self.stash.put(y)
        return y


@dataclass(frozen=True, slots=True)
class Network:
    """A bottleneck: down-projection, activation, up-projection."""

    config: BottleneckConfig
    parts: Mapping[str, torch.Tensor]
    """As `Bottleneck.parts` names them, float32."""

    def of(
        self, h_TK: torch.Tensor, residual_TK: torch.Tensor, sum_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return what is added to x instead of h.

        Args:
            h_TK: h.
            residual_TK: x.
            sum_TK: h + x, after the norm if one follows the sum.
        """
        config, parts = self.config, self.parts
        input_TK = sum_TK if config.reads_sum else h_TK
        if config.is_parallel:
            input_TK = residual_TK
        inner_TM = nn.functional.linear(input_TK, parts["down.weight"], parts["down.bias"])
        inner_TM = ACTIVATIONS[config.activation](inner_TM)
        out_TK = nn.functional.linear(inner_TM, parts["up.weight"], parts["up.bias"])
        out_TK = out_TK * (parts["scaling"] if config.scale is None else config.scale)
        if config.is_parallel:
            return h_TK + self._norm(out_TK)
        added_TK = input_TK if config.adds_sum else h_TK
        if config.adds_before_norm:
            return self._norm(out_TK + added_TK)
        return self._norm(out_TK) + added_TK

    def _norm(self, x_TK: torch.Tensor) -> torch.Tensor:
        weight = self.parts.get("norm.weight")
        if weight is None:
            return x_TK
        bias = self.parts["norm.bias"]
        return nn.functional.layer_norm(x_TK, weight.shape, weight, bias, _NORM_EPSILON)


@dataclass(frozen=True, slots=True)
class PreNormBottleneck:
    """Pre-norm: replaces h at the layer that outputs it, with x saved at the norm before."""

    network: Network
    residual: TensorStash

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return what is added to x instead of h, which is `y`."""
        residual_TK, h_TK = self.residual.take(), y.float()
        return self.network.of(h_TK, residual_TK, h_TK + residual_TK)


@dataclass(frozen=True, slots=True)
class PostNormBottleneck:
    """Post-norm: recomputes the norm after the sum, with x and h saved before."""

    network: Network
    residual: TensorStash
    output: TensorStash

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the norm of the sum with h replaced."""
        residual_TK, h_TK = self.residual.take(), self.output.take()
        added_TK = self.network.of(h_TK, residual_TK, y.float()) + residual_TK
        normed_TK: torch.Tensor = module.forward(added_TK.to(x.dtype))
        return normed_TK


def pack_bottlenecks(
    package: Package, base: BaseLayers, read: Callable[[TensorInfo], torch.Tensor]
) -> dict[str, ModuleEdit]:
    """Return the edits for the bottlenecks of `package`, by module name.

    Args:
        package: A package that fits the base.
        base: The base.
        read: Returns the values of a tensor.
    """
    edits: dict[str, ModuleEdit] = {}
    for bottleneck in package.contents.bottlenecks:
        assert isinstance(package.config, BottleneckConfig)
        site = site_of(bottleneck.layer, bottleneck.place, base.places, base.modules)
        assert site is not None, "the adapter does not fit"
        parts = {name: read(tensor) for name, tensor in bottleneck.parts.items()}
        network, residual, output = Network(package.config, parts), TensorStash(), TensorStash()
        edits[site.residual] = SaveInput(residual)
        if not site.norm:
            edits[site.output] = PreNormBottleneck(network, residual)
            continue
        edits[site.output] = SaveOutput(output)
        x_and_h = (output, residual) if site.is_exchanged else (residual, output)
        edits[site.norm] = PostNormBottleneck(network, *x_and_h)
    return edits
