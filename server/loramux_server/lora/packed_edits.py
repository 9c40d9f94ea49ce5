"""From the tensors of a package to what is done to the layers of the base at hand.

Legend: R rank, K input width, N output width of a layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from loramux_adapters import LoraModule, Package, PackageError
from loramux_adapters.contents import EditKind, VirtualTokens
from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.bottleneck import pack_bottlenecks
from loramux_server.lora.edits import Edits, LayerEdit
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.virtual import Virtual

_ROWS_AT_ONCE = 2048
Read = Callable[[TensorInfo], torch.Tensor]
"""Tensor of a package -> its values, float32 in memory of the host."""


class BaseLayers(Protocol):
    """What methods need to know of the layers that they change."""

    @property
    def places(self) -> Mapping[str, LayerPlace]:
        """Where each layer is that an adapter may change."""

    def bias(self, module: str) -> torch.Tensor | None:
        """Return the bias of a layer, float32 in memory of the host; None if it has none."""

    def rows(self, module: str, start: int, end: int) -> torch.Tensor:
        """Return some rows of the weight of a layer, [rows, K], float32 in memory of the host.

        Raises:
            PackageError: They cannot be had.
        """


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors that change one layer."""

    kinds: Mapping[EditKind, TensorInfo]
    low_rank: LoraModule | None


def pack_edits(package: Package, base: BaseLayers, read: Read) -> Edits | None:
    """Return what `package` does beside its low-rank changes; None if that is nothing.

    Raises:
        PackageError: It needs something of the base that cannot be had.
    """
    if package.virtual:
        return Edits(virtual=_virtual(package.virtual, read))
    if not package.contents.has_more:
        return None
    low_rank = {module.module: module for module in package.modules}
    by_module: dict[str, dict[EditKind, TensorInfo]] = {}
    for edit in package.edits:
        by_module.setdefault(edit.module, {})[edit.kind] = edit.tensor
    layers: dict[int, dict[int, LayerEdit]] = {}
    for module, kinds in by_module.items():
        place = base.places.get(module)
        if place is None:
            raise PackageError(f"module {module} is not in the base model")
        found = _Found(kinds, low_rank.get(module))
        layers.setdefault(place.group, {})[place.part] = _layer_edit(module, found, base, read)
    return Edits(layers=layers, modules=pack_bottlenecks(package, base.places, read))


def _virtual(virtual: VirtualTokens, read: Read) -> Virtual:
    """Return the embeddings, or keys and values, of `virtual`."""
    given_VK = read(virtual.tensor)
    if virtual.has_cache:
        shape = (virtual.count, virtual.num_layers, 2, virtual.num_heads, virtual.head_width)
        keys_LVJD, values_LVJE = given_VK.reshape(shape).permute(2, 1, 0, 3, 4).contiguous()
        return Virtual(keys=dict(enumerate(keys_LVJD)), values=dict(enumerate(values_LVJE)))
    if virtual.factors:
        columns_VR, rows_RK = (read(factor)[0] for factor in virtual.factors)
        given_VK = given_VK * (columns_VR @ rows_RK)
        if not given_VK.isfinite().all():
            raise PackageError(
                f"tensor {virtual.tensor.name} times the product of its factors is not finite",
                "ADAPTER_NOT_FINITE",
            )
    return Virtual(given_VK)


def _layer_edit(module: str, found: _Found, base: BaseLayers, read: Read) -> LayerEdit:
    """Return what `found` does to `module`.

    A layer makes `y = Wx + b` and the low-rank change is added to that. IA3 makes `f * y` of it,
    DoRA `m * (y - b) + b`, where m gives each row of the changed weights the learned length.
    """
    kinds, low_rank = found.kinds, found.low_rank
    bias_N = base.bias(module)
    new_bias_N = read(kinds[EditKind.BIAS]) if EditKind.BIAS in kinds else bias_N
    output_N = input_K = None
    if EditKind.OUTPUT_FACTOR in kinds:
        output_N = read(kinds[EditKind.OUTPUT_FACTOR]).reshape(-1)
    if EditKind.INPUT_FACTOR in kinds:
        input_K = read(kinds[EditKind.INPUT_FACTOR]).reshape(-1)
    shift_N = None
    if EditKind.MAGNITUDE in kinds:
        assert low_rank is not None
        lengths_N = _row_lengths(module, low_rank, base, read)
        output_N = read(kinds[EditKind.MAGNITUDE]) / lengths_N
        if not output_N.isfinite().all():
            raise PackageError(
                f"module {module}: the magnitude of DoRA over the length of a row of weights is "
                "not finite",
                "ADAPTER_NOT_FINITE",
            )
        if new_bias_N is not None:
            shift_N = new_bias_N - (0 if bias_N is None else output_N * bias_N)
    elif EditKind.BIAS in kinds:
        assert new_bias_N is not None
        shift_N = new_bias_N - (0 if bias_N is None else bias_N)
    if EditKind.ADDED_BIAS in kinds:
        assert low_rank is not None
        added_N = low_rank.scale * read(kinds[EditKind.ADDED_BIAS])
        shift_N = added_N if shift_N is None else shift_N + added_N
    return LayerEdit(input_K, output_N, shift_N)


def _row_lengths(module: str, low_rank: LoraModule, base: BaseLayers, read: Read) -> torch.Tensor:
    """Return the length of each row of the weight with its low-rank change, [N]."""
    a_RK, b_NR = read(low_rank.a), read(low_rank.b) * low_rank.scale
    pieces = []
    for start in range(0, len(b_NR), _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, len(b_NR))
        changed_NK = torch.addmm(base.rows(module, start, end), b_NR[start:end], a_RK)
        pieces.append(torch.linalg.vector_norm(changed_NK, dim=1))
    return torch.cat(pieces)
