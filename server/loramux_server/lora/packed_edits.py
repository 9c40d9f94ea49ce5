"""Loads a package's edits of linear layers, for the base at hand.

Legend: R rank, K input width, N output width of a layer.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from loramux_adapters import LoraModule, Package, PackageError
from loramux_adapters.contents import Edit, EditKind
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.kernels.saved_linear import SavedLinear
from loramux_server.lora.affine import Affine
from loramux_server.lora.edits import LayerEdit, keeps_saved_dtype
from loramux_server.lora.head import LayeredHeads
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.slab import DTYPES
from loramux_server.wire.weight_format import FORMATS

ROWS_AT_ONCE = 2048
"""Rows processed at a time of a weight that is only read, to bound temporary memory."""
Read = Callable[[TensorInfo], torch.Tensor]
"""Tensor of a package -> its values, float32 in host memory."""


class BaseLayers(Protocol):
    """What loading edits needs to know about the base's modules."""

    vocabulary: BaseVocabulary
    """Embeddings, output layer and vocabulary size."""
    dtype: torch.dtype
    """The dtype of the weights."""
    device: torch.device
    """The device of the weights."""

    @property
    def heads(self) -> LayeredHeads | None:
        """The heads that adapters may have; None where these are linear layers."""

    @property
    def places(self) -> Mapping[str, LayerPlace]:
        """Name of each layer that has rows in the slab -> its group and part."""

    @property
    def experts(self) -> Mapping[str, ExpertsShape]:
        """Name of each experts module that an adapter may change -> its shape."""

    @property
    def modules(self) -> Container[str]:
        """The names of all modules of the base."""

    @property
    def feeders(self) -> Mapping[LayerPlace, LayerPlace]:
        """A layer -> the layer whose output, multiplied elementwise, is its input (down -> up)."""

    def is_outer_module(self, module: str) -> bool:
        """Return whether `module` is before or after a stack of layers that runs fused."""

    def bias(self, module: str) -> torch.Tensor | None:
        """Return the bias of a layer, float32 in host memory; None if it has none."""

    def rows(self, module: str, start: int, end: int) -> torch.Tensor:
        """Return rows `start` to `end` of the weight of a layer or of the embeddings.

        They are [rows, K], float32, on the base's device.

        Raises:
            PackageError: The base cannot return them.
        """

    def as_held(self, module: str, parameter: str, value: torch.Tensor) -> torch.Tensor:
        """Convert a parameter from PEFT's layout to the layout and dtype of `module` here."""

    def linear(self, weight_NK: torch.Tensor, dtype: torch.dtype) -> SavedLinear:
        """Return a layer with `weight_NK`, which has the base's dtype, stored in `dtype`."""


@dataclass(slots=True)
class Found:
    """The tensors of a package that change one module."""

    kinds: dict[EditKind, TensorInfo] = field(default_factory=dict)
    """Vectors: magnitudes, factors and added biases."""
    parameters: dict[str, TensorInfo] = field(default_factory=dict)
    """Name of a parameter of the module -> its replacement."""
    tokens: Edit | None = None
    low_rank: LoraModule | None = None

    @property
    def is_low_rank_alone(self) -> bool:
        """Whether there is nothing but a low-rank change, if any."""
        return not (self.kinds or self.parameters or self.tokens)


def found_by_module(package: Package) -> dict[str, Found]:
    """Return the tensors of each module of `package` that needs more than rank rows."""
    found: dict[str, Found] = {}
    for edit in package.edits:
        of_module = found.setdefault(edit.module, Found())
        if edit.kind is EditKind.TOKENS:
            of_module.tokens = edit
        elif edit.kind in (EditKind.PARAMETER, EditKind.SHARED_WEIGHT):
            of_module.parameters[edit.parameter] = edit.tensor
        elif edit.kind is EditKind.BIAS:
            of_module.parameters["bias"] = edit.tensor
        else:
            of_module.kinds[edit.kind] = edit.tensor
    for module in package.contents.routers:
        found.setdefault(module.module, Found()).low_rank = module
    for module in package.modules:
        if module.is_outer or module.module in found:
            found.setdefault(module.module, Found()).low_rank = module
    return found


def layer_edit(module: str, found: Found, base: BaseLayers, read: Read) -> LayerEdit:
    """Return the edit of the linear layer `module`.

    With `y = Wx + b` plus the low-rank change, IA3 computes `f * y`, and DoRA `m * (y - b) + b`,
    where m is the learned magnitude over the norm of each row of the changed weight.

    Raises:
        PackageError: The base does not support it.
    """
    kinds, low_rank, parameters = found.kinds, found.low_rank, found.parameters
    bias_N = base.bias(module)
    new_bias_N = read(parameters["bias"]) if "bias" in parameters else bias_N
    factor_N = input_K = weight = None
    if "weight" in parameters:
        weight_NK = base.as_held(module, "weight", read(parameters["weight"]))
        weight = base.linear(weight_NK, stored_dtype(parameters["weight"], weight_NK.dtype))
        bias_N = None  # the replacement layer has no bias
        if new_bias_N is not None and len(new_bias_N) != len(weight_NK):
            raise PackageError(
                f"module {module}: the adapter has a weight of {len(weight_NK)} rows and no bias, "
                f"and the bias of the base model has {len(new_bias_N)} values",
                "ADAPTER_BASE_MISMATCH",
            )
    if EditKind.INPUT_FACTOR in kinds:
        input_K = read(kinds[EditKind.INPUT_FACTOR]).reshape(-1)
    shift_N = None
    if new_bias_N is not bias_N:
        assert new_bias_N is not None
        shift_N = new_bias_N - (0 if bias_N is None else bias_N)
    if EditKind.OUTPUT_FACTOR in kinds:
        factor_N = read(kinds[EditKind.OUTPUT_FACTOR]).reshape(-1)
        shift_N = None if shift_N is None else shift_N * factor_N
    if EditKind.MAGNITUDE in kinds:
        factor_N = read(kinds[EditKind.MAGNITUDE]) / _row_lengths(module, found, base, read)
        check_factor(module, factor_N)
        if new_bias_N is not None:
            shift_N = new_bias_N - (0 if bias_N is None else factor_N * bias_N)
    if EditKind.ADDED_BIAS in kinds:
        assert low_rank is not None
        added_N = low_rank.scale * read(kinds[EditKind.ADDED_BIAS])
        shift_N = added_N if shift_N is None else shift_N + added_N
    return LayerEdit(weight, input_K, Affine(factor_N, shift_N))


def stored_dtype(tensor: TensorInfo, held: torch.dtype) -> torch.dtype:
    """Return the storage dtype of `tensor`, where the base has dtype `held`."""
    is_as_saved = held is torch.float32 and keeps_saved_dtype(tensor)
    return DTYPES[FORMATS[tensor.dtype]] if is_as_saved else held


def split_edits(
    layers: Mapping[LayerPlace, LayerEdit], feeders: Mapping[LayerPlace, LayerPlace]
) -> tuple[dict[LayerPlace, Affine], dict[LayerPlace, LayerEdit]]:
    """Split `layers` into factors and shifts of outputs, which the slab stores, and the rest.

    An input factor becomes an output factor of the layer's feeder, if it has one.
    """
    affine: dict[LayerPlace, Affine] = {}
    rest: dict[LayerPlace, LayerEdit] = {}
    factors: dict[LayerPlace, torch.Tensor] = {}
    for place, edit in layers.items():
        feeder, left = feeders.get(place), edit
        if edit.weight is None:
            affine[place] = edit.affine
            left = replace(edit, affine=Affine())
        if edit.input_K is not None and feeder is not None:
            maker = layers.get(feeder)
            if maker is None or maker.weight is None:
                factors[feeder] = edit.input_K
                left = replace(left, input_K=None)
        if left.weight is not None or left.input_K is not None:
            rest[place] = left
    for place, factor in factors.items():
        affine[place] = affine.get(place, Affine()).times(factor)
    return {place: found for place, found in affine.items() if found}, rest


def check_factor(module: str, factor_N: torch.Tensor) -> None:
    """Check that DoRA's factor of the output of `module` is finite.

    Raises:
        PackageError: It is not.
    """
    if not factor_N.isfinite().all():
        raise PackageError(
            f"module {module}: DoRA's magnitude, divided by the norm of a row of weights, is not "
            "finite",
            "ADAPTER_NOT_FINITE",
        )


def weight_rows(
    module: str, found: Found, base: BaseLayers, read: Read
) -> Callable[[int, int], torch.Tensor]:
    """Return a function for rows of the weight to which the low-rank change of `module` is added.

    The rows are on the base's device.
    """
    if "weight" not in found.parameters:
        return lambda start, end: base.rows(module, start, end)
    weight_NK = read(found.parameters["weight"])
    return lambda start, end: weight_NK[start:end].to(base.device)


def _row_lengths(module: str, found: Found, base: BaseLayers, read: Read) -> torch.Tensor:
    """Return the norm of each row of the weight with its low-rank change, [N]."""
    low_rank = found.low_rank
    assert low_rank is not None
    rows = weight_rows(module, found, base, read)
    # Computed on the base's device: the whole weight is read and must not be copied to the host.
    a_RK = read(low_rank.a).to(base.device)
    b_NR = read(low_rank.b).to(base.device) * low_rank.scale
    pieces = []
    for start in range(0, len(b_NR), ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, len(b_NR))
        changed_NK = torch.addmm(rows(start, end), b_NR[start:end], a_RK)
        pieces.append(torch.linalg.vector_norm(changed_NK, dim=1))
    return torch.cat(pieces).cpu()
