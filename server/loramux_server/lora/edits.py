"""What adapters change in the base besides low-rank updates: vectors, weights and modules.

Factors and shifts of outputs are stored in the slab (`lora/affine.py`). Everything else is applied
where the method applies it. Edits of modules before or after the layers (embeddings, last norm,
output layer) do not affect how the layers run. A step in which a token has any other edit runs the
model's own layers, operation by operation. Steps without edits are unaffected. Virtual tokens
change no layer: a step that inserts them, and has no other edits, runs as usual.

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
"""Stored matrices are padded to a multiple of at most this many outputs: `register_tile.PANEL`."""


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """The edit of one linear layer: `y = affine.of(layer(x * input))`.

    `layer` includes the low-rank change; a `weight` replaces the base's. None: not applied.
    """

    weight: "SavedLinear | None" = None
    input_K: "torch.Tensor | None" = None
    affine: Affine = field(default_factory=Affine)


class ModuleEdit(Protocol):
    """The edit of a module that is not a packed linear layer; a dataclass of tensors."""

    def __call__(self, module: "nn.Module", x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
        """Return the replacement of `y`, which may be `y` modified in place.

        Args:
            module: The base's module.
            x: Its input for the adapter's tokens, [T] or [T, K].
            y: Its output for them, [T, N].
        """


@dataclass(frozen=True, slots=True)
class Edits:
    """Everything that one adapter does besides low-rank changes of layers in the slab.

    Tensors are float32. Weights that replace the base's have the base's dtype, except that matrices
    saved in 16 bits stay in 16 bits if the base is float32.
    """

    affine: Mapping[int, Mapping[int, Affine]] = field(default_factory=dict)
    """Group of layers -> part (layer) of it -> factor and shift of its output."""
    layers: Mapping[int, Mapping[int, LayerEdit]] = field(default_factory=dict)
    """Group -> part -> the layer's other edits."""
    modules: Mapping[str, ModuleEdit] = field(default_factory=dict)
    """Name of another module inside the layers -> its edit."""
    experts: Mapping[str, "ExpertsEdit"] = field(default_factory=dict)
    """Name of a layer's experts module -> the changes of its matrices, in storage format."""
    routers: Mapping[str, "RouterEdit"] = field(default_factory=dict)
    """Name of a router of experts -> its edit."""
    outer_modules: Mapping[str, ModuleEdit] = field(default_factory=dict)
    """Name of a module before or after the layers -> its edit."""
    vocab_size: int = 0
    """Vocabulary size of the base with this adapter; 0 if unchanged."""
    virtual: Virtual | None = None
    """Virtual tokens before every prompt."""
    head: "Head | LayeredHead | LayersHead | None" = None
    """The head that reads hidden states instead of the output layer (LM head)."""

    def __bool__(self) -> bool:
        return self.changes_layers or self.virtual is not None or self.head is not None

    @property
    def changes_layers(self) -> bool:
        """Whether layers or modules are changed."""
        return bool(self.affine) or self.has_edits_outside_slab

    @property
    def has_edits_outside_slab(self) -> bool:
        """Whether any change is not stored in the slab."""
        return self.needs_model_layers or bool(self.outer_modules or self.vocab_size)

    @property
    def needs_model_layers(self) -> bool:
        """Whether any edit is inside the layers, so that the model's own layers have to run."""
        return bool(self.layers or self.modules or self.experts or self.routers)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in _tensors(self))

    def to(self, device: "torch.device") -> "Edits":
        """Return a copy on `device`, without the vectors that are stored in the slab."""
        return _moved(replace(self, affine={}), device)


def num_edit_bytes(package: Package) -> int:
    """Return an upper bound of the bytes that `package` takes besides A and B in the slab."""
    num_bytes = 0
    shifted: set[str] = set()
    for edit in package.edits:
        if edit.kind in _FACTORS:
            num_bytes += 4 * edit.width
        elif edit.kind is EditKind.PARAMETER:
            num_bytes += _parameter_bytes(edit.tensor)
        elif edit.kind is EditKind.TOKENS:  # for embeddings and output layer, which may be tied
            num_bytes += 2 * (4 * edit.width + 8 * len(edit.tokens))
        elif edit.kind is EditKind.SHARED_WEIGHT:  # likewise
            num_bytes += 2 * _parameter_bytes(edit.tensor)
        # DoRA changes the effect of the base's bias, which takes a shift.
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


def num_vision_bytes(package: Package) -> int:
    """Return the bytes of the changes of `package` to vision modules, which are kept as saved."""
    vision = package.contents.vision
    if vision is None:
        return 0
    factors = (half for change in vision.low_rank for half in (change.a, change.b))
    return sum(tensor.num_bytes for tensor in (*factors, *vision.other_tensors))


def _head_bytes(package: Package) -> int:
    """Return an upper bound of the bytes of a head, including layers of the base's own head.

    Changed layers are counted as full weights.
    """
    head, post_layers = package.head, package.contents.post_layers
    if head is None:
        return 0
    num_weights = head.num_labels + sum(math.prod(tensor.shape) for tensor in head.tensors)
    for module in post_layers.modules if post_layers else []:
        num_weights += module.in_features * module.out_features
    num_weights += sum(edit.width for edit in post_layers.edits) if post_layers else 0
    return 4 * num_weights


def keeps_saved_dtype(tensor: TensorInfo) -> bool:
    """Return whether `tensor`, which replaces a parameter, stays in the format it was saved in.

    That holds for matrices, which are used as stored or widened in pieces. Others are small.
    """
    return len(tensor.shape) == 2


def _experts_bytes(package: Package) -> int:
    """Return an upper bound of the bytes of expert changes.

    All experts of a layer have as many rows as the one with the largest rank; 16-bit rows come in
    pairs.
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
    is_half = change.projection in (Projection.GATE, Projection.UP)  # stored side by side
    return change.features[1] * (2 if is_half else 1)


Value = TypeVar("Value")


def _parameter_bytes(tensor: TensorInfo) -> int:
    """Return an upper bound of the bytes that `tensor` takes in place of a parameter."""
    if not keeps_saved_dtype(tensor):
        return 4 * math.prod(tensor.shape)
    rows, columns = tensor.shape  # transposed in some layers
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
    from loramux_server.kernels.sending import send  # the store imports this module without torch

    return send(value, device)  # type: ignore[arg-type, return-value]
