"""What adapters do to the base beside low-rank changes: vectors and modules of their own.

Factors and shifts of outputs go to the slab (`lora/affine.py`). All else is done where the method
does it. What is before and behind the layers, such as embeddings, the last norm and the layer that
makes logits, leaves them as they are; a step in which a token has anything else goes through the
model's own layers, one operation after the other. Steps without know nothing of this. Virtual
tokens change no layer: unless there is something beside them, the step that puts them in their
place goes the usual way.

Legend: T tokens, K input width, N output width of a layer.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from loramux_adapters import Package
from loramux_adapters.contents import EditKind
from loramux_adapters.experts import ExpertLora, Projection
from loramux_adapters.tensorfile import ITEM_BYTES, TensorInfo
from loramux_server.lora.affine import Affine
from loramux_server.lora.virtual import Virtual
from loramux_server.wire.weight_format import format_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from loramux_server.kernels.saved_linear import SavedLinear
    from loramux_server.lora.experts_edit import ExpertsEdit
    from loramux_server.lora.head import Head, LayeredHead, LayersHead
    from loramux_server.lora.module_edits import RouterEdit

_FACTORS = frozenset({EditKind.MAGNITUDE, EditKind.OUTPUT_FACTOR, EditKind.INPUT_FACTOR})
_SHIFTING = frozenset({EditKind.MAGNITUDE, EditKind.BIAS, EditKind.ADDED_BIAS})
_PADDED_TO = 32
"""A matrix rests with a multiple of so many outputs at most: see `register_tile.PANEL`."""


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """What is done to one linear layer: `y = affine.of(layer(x * input))`.

    The layer has its low-rank change in it. Where there is a weight, that is the layer. What is
    None is not done.
    """

    weight: "SavedLinear | None" = None
    input_K: "torch.Tensor | None" = None
    affine: Affine = field(default_factory=Affine)


class ModuleEdit(Protocol):
    """What is done to a module that is no packed linear layer; a dataclass of tensors."""

    def __call__(self, module: "nn.Module", x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
        """Return what takes the place of `y`; that may be `y` with other numbers in it.

        Args:
            module: The module as it stands in the model.
            x: What it was given for the tokens of the adapter, [T] or [T, K].
            y: What it made of that, [T, N].
        """


@dataclass(frozen=True, slots=True)
class Edits:
    """Everything that one adapter does beside its low-rank changes of layers in the slab.

    Tensors are of float32. Weights that take the place of the base's are in its number format; but
    matrices that were saved in 16 bits rest in these where the base has float32.
    """

    affine: Mapping[int, Mapping[int, Affine]] = field(default_factory=dict)
    """Number of a group of layers -> number of a layer in it -> what becomes of its output."""
    layers: Mapping[int, Mapping[int, LayerEdit]] = field(default_factory=dict)
    """Likewise, what else is done to that layer."""
    modules: Mapping[str, ModuleEdit] = field(default_factory=dict)
    """Name of another module in the layers -> what is done to that."""
    experts: Mapping[str, "ExpertsEdit"] = field(default_factory=dict)
    """Name of a layer's experts -> what is done to their matrices, as these rest."""
    routers: Mapping[str, "RouterEdit"] = field(default_factory=dict)
    """Name of what chooses among experts -> its weight."""
    ends: Mapping[str, ModuleEdit] = field(default_factory=dict)
    """Name of a module before or behind the layers -> likewise."""
    vocab_size: int = 0
    """Tokens that the base has with this adapter; 0 if as many as ever."""
    virtual: Virtual | None = None
    """What stands before every prompt."""
    head: "Head | LayeredHead | LayersHead | None" = None
    """What reads hidden states in place of the layer of logits."""

    def __bool__(self) -> bool:
        return self.changes or self.virtual is not None or self.head is not None

    @property
    def changes(self) -> bool:
        """Whether anything is done to layers and modules."""
        return bool(self.affine) or self.acts

    @property
    def acts(self) -> bool:
        """Whether anything is that the slab does not have."""
        return self.takes_layers or bool(self.ends or self.vocab_size)

    @property
    def takes_layers(self) -> bool:
        """Whether anything is that takes the model's own layers."""
        return bool(self.layers or self.modules or self.experts or self.routers)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in _tensors(self))

    def to(self, device: "torch.device") -> "Edits":
        """Return the same on `device`, less what the slab has."""
        return _moved(replace(self, affine={}), device)


def num_edit_bytes(package: Package) -> int:
    """Return the most bytes that `package` takes in memory beside A and B in the slab."""
    num_bytes = 0
    shifted: set[str] = set()
    for edit in package.edits:
        if edit.kind in _FACTORS:
            num_bytes += 4 * edit.width
        elif edit.kind is EditKind.PARAMETER:
            num_bytes += _parameter_bytes(edit.tensor)
        elif edit.kind is EditKind.TOKENS:  # once for each of two modules that may be tied
            num_bytes += 2 * (4 * edit.width + 8 * len(edit.tokens))
        elif edit.kind is EditKind.SHARED_WEIGHT:  # likewise
            num_bytes += 2 * _parameter_bytes(edit.tensor)
        # DoRA moves the bias that the base has.
        if edit.kind in _SHIFTING and edit.module not in shifted:
            shifted.add(edit.module)
            num_bytes += 4 * edit.width
    for module in (*package.contents.outer_modules, *package.contents.routers):
        num_bytes += 4 * module.rank * (module.in_features + module.out_features)
    num_bytes += _experts_bytes(package)
    for bottleneck in package.contents.bottlenecks:
        for part in bottleneck.parts.values():
            num_bytes += 4 * part.num_bytes // ITEM_BYTES[part.dtype]
    if package.virtual:
        num_bytes += 4 * package.virtual.count * package.virtual.width
    return num_bytes + _head_bytes(package)


def num_sight_bytes(package: Package) -> int:
    """Return the bytes of what `package` does to what sees images, which rests as it was saved."""
    sight = package.contents.sight
    if sight is None:
        return 0
    factors = (half for change in sight.low_rank for half in (change.a, change.b))
    return sum(tensor.num_bytes for tensor in (*factors, *sight.other_tensors))


def _head_bytes(package: Package) -> int:
    """Return the most bytes that a head takes, with layers before it that the base has, too.

    A changed layer is one of its own.
    """
    head, behind = package.head, package.contents.behind
    if head is None:
        return 0
    num_weights = head.num_labels + sum(math.prod(tensor.shape) for tensor in head.tensors)
    for module in behind.modules if behind else []:
        num_weights += module.in_features * module.out_features
    num_weights += sum(edit.width for edit in behind.edits) if behind else 0
    return 4 * num_weights


def rests_as_saved(tensor: TensorInfo) -> bool:
    """Return whether `tensor`, which takes the place of a parameter, rests in no more bits.

    So do matrices, which are computed with as they rest, or in pieces. Others are small.
    """
    return len(tensor.shape) == 2


def _experts_bytes(package: Package) -> int:
    """Return the most bytes that changes of experts take.

    All experts of a layer have as many rows as the one that is changed most; of 16 bits rows come
    in pairs.
    """
    found: dict[tuple[str, bool], list[ExpertLora]] = {}
    for change in package.contents.experts:
        found.setdefault((change.module, change.projection is Projection.DOWN), []).append(change)
    num_weights = 0
    for changes in found.values():
        ranks: Counter[int | None] = Counter()
        for change in changes:
            ranks[change.number] += change.rank
        rank = ranks.pop(None, 0) + max(ranks.values(), default=0)
        num_experts = max(change.num_experts + change.num_beside for change in changes)
        width = max(change.features[0] + _width_out(change) for change in changes)
        num_weights += num_experts * (rank + rank % 2) * width
    return num_weights * format_of(package).item_bytes


def _width_out(change: ExpertLora) -> int:
    is_half = change.projection in (Projection.GATE, Projection.UP)  # they lie side by side
    return change.features[1] * (2 if is_half else 1)


Value = TypeVar("Value")


def _parameter_bytes(tensor: TensorInfo) -> int:
    """Return the most bytes that `tensor` takes in place of a parameter."""
    if not rests_as_saved(tensor):
        return 4 * math.prod(tensor.shape)
    rows, columns = tensor.shape  # of some layers, the other way round
    padded_rows, padded_columns = (-(-size // _PADDED_TO) * _PADDED_TO for size in (rows, columns))
    return ITEM_BYTES[tensor.dtype] * max(padded_rows * columns, rows * padded_columns)


def _tensors(value: object) -> Iterator["torch.Tensor"]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif hasattr(value, "__dataclass_fields__"):
        for each in fields(value):  # type: ignore[arg-type]
            yield from _tensors(getattr(value, each.name))
    elif hasattr(value, "nbytes"):
        yield value  # type: ignore[misc]


def _moved(value: Value, device: "torch.device") -> Value:
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}  # type: ignore[return-value]
    if hasattr(value, "__dataclass_fields__"):
        moved = {each.name: _moved(getattr(value, each.name), device) for each in fields(value)}  # type: ignore[arg-type]
        return replace(value, **moved)  # type: ignore[type-var]
    if not hasattr(value, "nbytes"):
        return value
    from loramux_server.kernels.sending import send  # the store, which imports this, has no torch

    return send(value, device)  # type: ignore[arg-type, return-value]
