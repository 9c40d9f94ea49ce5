"""Linear layers that share an input, as one matmul, with the adapters' changes on top."""

from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loramux_server.kernels.backend import Backend
from loramux_server.kernels.linear import Linear, Lookup, make_linear
from loramux_server.kernels.module_linear import ModuleLinear
from loramux_server.kernels.projection import Projection
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.shard import Shard, Split, shard_shape
from loramux_server.lora.slab import GroupShape, Slab
from loramux_server.models.edited_linear import project_edited
from loramux_server.models.quantized import is_quantized
from loramux_server.models.step import Step

Layer: TypeAlias = nn.Linear
"""Or transformers' Conv1D, whose weight is transposed."""
Weights: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [N, K] and bias [N]."""


def features(layer: Layer) -> tuple[int, int]:
    """Return (in_features, out_features)."""
    if isinstance(layer, Conv1D):
        rows, columns = layer.weight.shape
        return rows, columns
    return layer.in_features, layer.out_features


class PackedLinear:
    """A group of linear layers that are called with the same input, one after the other.

    The first call computes all of them and keeps the other outputs until they are requested. In the
    model, the layers are replaced by `PackedPart`s, so modelling code is unaffected. If one of them
    is quantized, each is computed by its own module.
    """

    def __init__(self, layers: list[Layer], group: int, step: Step, dtype: torch.dtype) -> None:
        self._group = group
        self._step = step
        self.dtype = dtype
        """Dtype of inputs and outputs."""
        self.device = layers[0].weight.device
        self.is_plain = not any(map(is_quantized, layers))
        """Whether the weights can be concatenated, sharded and moved."""
        self.whole = GroupShape(
            features(layers[0])[0], tuple(features(layer)[1] for layer in layers)
        )
        """The shape of the layers in the model; this process may hold a shard of it."""
        self.split = Split.NOTHING
        self._weights: Weights | None = None
        self._linear: Linear
        if self.is_plain:
            self._hold(_join(layers), self.whole)
        else:
            self._linear = ModuleLinear(layers)
            self._take(self.whole)
            self._bias_N = _join_biases(layers)
        self._slab: Slab | None = None
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        self._num_asked = 0

    def _hold(self, weights: Weights, shape: GroupShape) -> None:
        self._weights = weights
        self._linear = make_linear(*weights)
        self._bias_N = weights[1]
        self._take(shape)

    def _take(self, shape: GroupShape) -> None:
        self.shape = shape
        """The shape that this process holds."""
        self._columns = np.cumsum([0, *shape.out_features], dtype=np.int32)
        self._borders = self._columns.tolist()

    def keep_shard(self, split: Split, shard: Shard) -> None:
        """Keep only the shard's part of the weights; call once, before `attach`."""
        assert self._weights is not None and self.split is Split.NOTHING
        weight_NK, bias_N = self._weights
        if split is Split.OUTPUTS:
            widths = self.whole.out_features
            weight_NK = _shard_parts(weight_NK, widths, shard)
            bias_N = None if bias_N is None else _shard_parts(bias_N, widths, shard)
        elif split is Split.INPUTS:
            weight_NK = weight_NK[:, shard.of(self.whole.in_features)].contiguous()
            # Only one process adds the bias to the sum of all processes.
            bias_N = bias_N if shard.index == 0 else None
        self.split = split
        self._hold((weight_NK, bias_N), shard_shape(self.whole, split, shard))

    def move(self, device: torch.device) -> None:
        """Move the weights to `device`; before `attach`."""
        assert self._weights is not None
        self.device = device
        self._hold(_moved(self._weights, device), self.shape)

    def attach(self, slab: Slab, backend: Backend) -> None:
        """Hand the weights over to `backend`, and read adapters from `slab`; call once."""
        assert self._slab is None
        if self._weights is not None:
            weight_NK, bias_N = self._weights
            self._linear = backend.make_linear(slab.place(self._group, weight_NK), bias_N)
            self._weights = None
        self._slab = slab

    def bias(self, part: int) -> torch.Tensor | None:
        """Return the bias of layer number `part`, float32 on the host; None if no layer has one."""
        if self._bias_N is None:
            return None
        return self._bias_N[self._borders[part] : self._borders[part + 1]].float().cpu()

    def rows(self, part: int, start: int, end: int) -> torch.Tensor:
        """Return outputs `start` to `end` of the weight of layer number `part`, [rows, K], float32.

        Raises:
            ValueError: The weight is quantized and cannot be read.
        """
        first = self._borders[part]
        return self._linear.rows(first + start, first + end)

    def place(self, part: int) -> LayerPlace:
        """Return the place of layer number `part`, by which adapters address it."""
        return LayerPlace(self._group, part)

    def projection(self) -> Projection:
        """Return the operands of `compute`."""
        slab, group = self._slab, self._group
        is_partial = self.split is Split.INPUTS
        if slab is None:
            return Projection(self._linear, self._columns, None, None, group, is_partial=is_partial)
        table = slab.table.group(group) if slab.table else None
        return Projection(
            self._linear, self._columns, slab.a[group], slab.b[group], group,
            slab.extended[group], table, is_partial,
        )  # fmt: skip

    def part(self, x: torch.Tensor, part: int) -> torch.Tensor:
        """Return the output of layer number `part` for input `x` of shape [..., K]."""
        if self.shape.num_parts == 1:
            return self.compute(x)
        if x is not self._input:
            self._input, self._output, self._num_asked = x, self.compute(x), 0
        assert self._output is not None
        out = self._output[..., self._borders[part] : self._borders[part + 1]]
        self._num_asked += 1
        if self._num_asked == self.shape.num_parts:
            self._input = self._output = None
        return out

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the concatenated outputs of all layers for input `x` of shape [..., K]."""
        x_TK = x.reshape(-1, x.shape[-1])
        step = self._step
        segments = step.segments

        def project(x_TK: torch.Tensor) -> torch.Tensor:
            return step.backend.project(self.projection(), step.backend, x_TK, segments)

        if segments is None or segments.edits is None:
            y_TN = project(x_TK)
        else:
            y_TN = project_edited(project, x_TK, segments, self._group, self._borders)
        return y_TN.view(*x.shape[:-1], y_TN.shape[-1])


class PackedPart(nn.Module):
    """Takes the place of one layer of a `PackedLinear`."""

    def __init__(self, packed: PackedLinear, part: int) -> None:
        super().__init__()
        self.packed = packed
        self.part = part

    @property
    def place(self) -> LayerPlace:
        """The layer's place, by which adapters address it."""
        return self.packed.place(self.part)

    @property
    def weight(self) -> torch.Tensor:
        """The layer's weight on the meta device: some models read its shape and dtype."""
        width_in, width_out = self.packed.whole.in_features, self.packed.whole.out_features
        return torch.empty(width_out[self.part], width_in, dtype=self.packed.dtype, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, with the adapters' changes of the running step."""
        return self.packed.part(x, self.part)


class OutputLayer(nn.Module):
    """Takes the place of the output layer (lm_head); the slab has no rank rows for it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.bias = None if layer.bias is None else layer.bias.float().cpu()
        """Float32 on the host; None if it has none."""
        self._format = layer.weight.shape, layer.weight.dtype
        self._weights: Weights | None = None
        self._linear: Linear
        if is_quantized(layer):
            self._linear = ModuleLinear([layer])
        else:
            self._hold((layer.weight, layer.bias))

    def _hold(self, weights: Weights) -> None:
        self._weights = weights
        self._linear = make_linear(*weights)

    def move(self, device: torch.device) -> None:
        """Move the weights to `device`; before `attach`."""
        assert self._weights is not None
        self._hold(_moved(self._weights, device))

    def attach(self, backend: Backend) -> None:
        """Hand the weights over to `backend`; call once."""
        if self._weights is not None:
            self._linear = backend.make_linear(*self._weights)
            self._weights = None

    @property
    def weight(self) -> torch.Tensor:
        """The weight on the meta device: some models read its shape and dtype."""
        shape, dtype = self._format
        return torch.empty(shape, dtype=dtype, device="meta")

    @property
    def lookup(self) -> Lookup | None:
        """Looks up rows of the weight, if the layer keeps a copy that allows it; else None."""
        return self._linear.lookup

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return rows `start` to `end` of the weight, one per token, [rows, K], float32.

        Raises:
            ValueError: The weight is quantized and cannot be read.
        """
        return self._linear.rows(start, end)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of `x`."""
        y = self._linear(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])


def _join(layers: list[Layer]) -> Weights:
    with torch.no_grad():
        weights = [
            layer.weight.T if isinstance(layer, Conv1D) else layer.weight for layer in layers
        ]
        return torch.cat(weights).contiguous(), _join_biases(layers)


def _join_biases(layers: list[Layer]) -> torch.Tensor | None:
    biases = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return None
    return torch.cat([
        torch.zeros(features(layer)[1], dtype=layer.weight.dtype, device=layer.weight.device)
        if layer.bias is None
        else layer.bias
        for layer in layers
    ])  # fmt: skip


def _shard_parts(x_N: torch.Tensor, widths: tuple[int, ...], shard: Shard) -> torch.Tensor:
    """Return the shard's part of each section of `x_N`, [N] or [N, K]."""
    return torch.cat([part[shard.of(len(part))] for part in torch.split(x_N, list(widths))])


def _moved(weights: Weights, device: torch.device) -> Weights:
    weight_NK, bias_N = weights
    return weight_NK.to(device), None if bias_N is None else bias_N.to(device)
