"""Adapters' changes of vision modules.

No step runs these modules, so the changes take no rank rows: they are read when an image is encoded
for a request with the adapter, and applied during that.

Legend: R rank, K input width, N output width of a layer.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loramux_adapters.contents import EditKind
from loramux_adapters.fit import check_vision
from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.mix import Found, combined, not_mixable
from loramux_server.lora.packed import Base, open_streaming, package_in, verified
from loramux_server.lora.slab import DTYPES
from loramux_server.lora.streaming_file import StreamingFile
from loramux_server.lora.weights import Weights, read_weights, rounded
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.weight_format import FORMATS, WeightFormat

KEPT = 1024
"""Most adapters whose changes are cached."""
KEPT_BYTES = 256 << 20
"""Most bytes of host memory for them, unless a single one takes more."""


class VisionBase(Base, Protocol):
    """A base model with vision modules."""

    @property
    def vision_layers(self) -> Mapping[str, tuple[int, int]]:
        """Name of each linear layer of the vision modules -> (in_features, out_features)."""

    @property
    def vision_parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name of each parameter of the vision modules -> its shape."""


@dataclass(frozen=True, slots=True)
class VisionLora:
    """The low-rank change of one linear layer, in host memory."""

    a_RK: Weights
    b_RN: Weights
    """B transposed."""
    scale: float
    form: WeightFormat
    magnitude_N: torch.Tensor | None = None
    """DoRA: the magnitude of each row of the changed weight."""

    def of(self, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the replacement of `y`, the output of `layer` for `x`."""
        a_RK, b_RN = (self._factor(half, x.device) for half in (self.a_RK, self.b_RN))
        added = self.scale * (x.float() @ a_RK.T @ b_RN)
        if self.magnitude_N is None:
            return (y.float() + added).to(y.dtype)
        weight_NK: torch.Tensor = layer.get_parameter("weight").float()
        bias_N: torch.Tensor | None = getattr(layer, "bias", None)
        if isinstance(layer, Conv1D):
            weight_NK = weight_NK.T
        changed_NK = torch.addmm(weight_NK, b_RN.T, a_RK, alpha=self.scale)
        length_N: torch.Tensor = torch.linalg.vector_norm(changed_NK, dim=1)
        bias = 0 if bias_N is None else bias_N.float()
        factor_N = self.magnitude_N.to(x.device).float() / length_N
        return (factor_N * (y.float() - bias + added) + bias).to(y.dtype)

    def _factor(self, values: Weights, device: torch.device) -> torch.Tensor:
        held = torch.from_numpy(values).view(DTYPES[self.form])
        return held.to(device).float()


@dataclass(frozen=True, slots=True)
class VisionAdapter:
    """All changes of vision modules by one adapter, or by a mix of several."""

    layers: Mapping[str, VisionLora] = field(default_factory=dict)
    """Name of a linear layer -> its low-rank change."""
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name of a parameter -> its replacement."""

    def __bool__(self) -> bool:
        return bool(self.layers or self.parameters)

    @property
    def is_low_rank_alone(self) -> bool:
        """Whether it has low-rank changes only, so that it can be mixed with others."""
        return not self.parameters and all(
            each.magnitude_N is None for each in self.layers.values()
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights except magnitudes."""
        layers = sum(each.a_RK.nbytes + each.b_RN.nbytes for each in self.layers.values())
        return layers + sum(each.nbytes for each in self.parameters.values())


class VisionAdapterCache:
    """An LRU cache of adapters' changes of vision modules; not thread-safe."""

    def __init__(self, base: VisionBase) -> None:
        """Create an empty cache for adapters of `base`."""
        self._base = base
        self._kept: OrderedDict[str, VisionAdapter] = OrderedDict()

    def of(self, source: AdapterSource) -> VisionAdapter:
        """Return the changes by the adapter `source`; read its file if they are not cached.

        Raises:
            DamagedError: See `load_vision_adapter`.
            PackageError: Likewise.
        """
        change = self._kept.pop(source.digest, None)
        if change is None:
            change = load_vision_adapter(source, self._base)
        self._kept[source.digest] = change
        while len(self._kept) > 1 and self._is_full():
            self._kept.popitem(last=False)
        return change

    def _is_full(self) -> bool:
        num_bytes = sum(change.num_bytes for change in self._kept.values())
        return num_bytes > KEPT_BYTES or len(self._kept) > KEPT


def load_vision_adapter(source: AdapterSource, base: VisionBase) -> VisionAdapter:
    """Read the changes of vision modules by an adapter, or a mix of several; most have none.

    Raises:
        DamagedError: A file is absent or not what was registered.
        PackageError: It does not fit the base model, or its parts cannot be mixed.
    """
    if not source.parts:
        return _load(source.path, source.digest, source.seal, base)
    found: dict[str, list[Found]] = {}
    for part in source.parts:
        change = _load(part.path, part.digest, part.seal, base)
        if not change.is_low_rank_alone:
            raise not_mixable(part)
        for name, layer in change.layers.items():
            found.setdefault(name, []).append(
                Found(layer.a_RK, layer.b_RN, layer.form, layer.scale * part.weight)
            )
    return VisionAdapter({name: _mixed(changes, source) for name, changes in found.items()})


def _mixed(changes: Sequence[Found], source: AdapterSource) -> VisionLora:
    form = WeightFormat.FLOAT32
    a_RK, b_RN = (rounded(half, form) for half in combined(changes, source.combination))
    return VisionLora(a_RK, b_RN, 1.0, form)


def _load(path: str, digest: str, seal: str, base: VisionBase) -> VisionAdapter:
    with open_streaming(Path(path), digest, seal) as file, verified(file):
        package = package_in(file, base)
        vision = package.contents.vision
        if vision is None:
            return VisionAdapter()
        check_vision(vision, base.vision_layers, base.vision_parameters)
        begin = package.file.data_start
        lengths: dict[str, torch.Tensor] = {}
        parameters: dict[str, torch.Tensor] = {}
        for edit in vision.edits:
            value = _tensor(file, begin, edit.tensor)
            if edit.kind is EditKind.MAGNITUDE:
                lengths[edit.module] = value
            else:
                parameters[f"{edit.module}.{edit.parameter or 'bias'}"] = value
        layers = {}
        for module in vision.modules:
            # A and B of different formats are both stored as float32.
            form = FORMATS[module.a.dtype]
            if FORMATS[module.b.dtype] is not form:
                form = WeightFormat.FLOAT32
            a_RK = _weights(file, begin, module.a, form)
            b_RN = _weights(file, begin, module.b, form).T.copy()
            length_N = lengths.get(module.module)
            layers[module.module] = VisionLora(a_RK, b_RN, module.scale, form, length_N)
    return VisionAdapter(layers, parameters)


def _weights(file: StreamingFile, begin: int, tensor: TensorInfo, form: WeightFormat) -> Weights:
    at = begin + tensor.offset
    return read_weights(tensor, file[at : at + tensor.num_bytes], form).copy()


def _tensor(file: StreamingFile, begin: int, tensor: TensorInfo) -> torch.Tensor:
    form = FORMATS[tensor.dtype]
    return torch.from_numpy(_weights(file, begin, tensor, form)).view(DTYPES[form])
