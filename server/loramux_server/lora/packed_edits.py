"""From the tensors of a package to what is done to the modules of the base at hand.

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
from loramux_server.lora.edits import LayerEdit, rests_as_saved
from loramux_server.lora.head import LayeredHeads
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.slab import DTYPES
from loramux_server.wire.weight_format import FORMATS

ROWS_AT_ONCE = 2048
"""Of a weight that is only looked at, so many are in memory at a time."""
Read = Callable[[TensorInfo], torch.Tensor]
"""Tensor of a package -> its values, float32 in memory of the host."""


class BaseLayers(Protocol):
    """What methods need to know of the modules that they change."""

    vocabulary: BaseVocabulary
    """Where tokens go in and come out."""
    dtype: torch.dtype
    """The number format of the weights."""
    device: torch.device
    """Where they are."""

    @property
    def heads(self) -> LayeredHeads | None:
        """The heads that adapters may have; None where these are linear layers."""

    @property
    def places(self) -> Mapping[str, LayerPlace]:
        """Where each layer is that an adapter may change in the slab."""

    @property
    def experts(self) -> Mapping[str, ExpertsShape]:
        """The experts that an adapter may change, by name."""

    @property
    def modules(self) -> Container[str]:
        """The names of all modules of the base."""

    @property
    def feeders(self) -> Mapping[LayerPlace, LayerPlace]:
        """Where a layer is -> where the one is whose output, times something, is its input."""

    def is_end(self, module: str) -> bool:
        """Return whether `module` is before or behind layers that are done as one."""

    def bias(self, module: str) -> torch.Tensor | None:
        """Return the bias of a layer, float32 in memory of the host; None if it has none."""

    def rows(self, module: str, start: int, end: int) -> torch.Tensor:
        """Return some rows of the weight of a layer or of the embeddings.

        They are [rows, K], float32, where the base is.

        Raises:
            PackageError: They cannot be had.
        """

    def as_held(self, module: str, parameter: str, value: torch.Tensor) -> torch.Tensor:
        """Return a parameter of `module`, as PEFT saves it, as the module holds it here."""

    def linear(self, weight_NK: torch.Tensor, dtype: torch.dtype) -> SavedLinear:
        """Return a layer with a weight in the base's format, which is to rest in `dtype`."""


@dataclass(slots=True)
class Found:
    """The tensors that change one module."""

    kinds: dict[EditKind, TensorInfo] = field(default_factory=dict)
    """Vectors."""
    parameters: dict[str, TensorInfo] = field(default_factory=dict)
    """What takes the place of the module's parameters."""
    tokens: Edit | None = None
    low_rank: LoraModule | None = None

    @property
    def is_low_rank_alone(self) -> bool:
        """Whether rank rows are all that it takes."""
        return not (self.kinds or self.parameters or self.tokens)


def found_by_module(package: Package) -> dict[str, Found]:
    """Return what `package` has for each module that needs more than rank rows."""
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
    """Return what `found` does to the linear layer `module`.

    A layer makes `y = Wx + b` and the low-rank change is added to that. IA3 makes `f * y` of it,
    DoRA `m * (y - b) + b`, where m gives each row of the changed weights the learned length.

    Raises:
        PackageError: That cannot be done to the base.
    """
    kinds, low_rank, parameters = found.kinds, found.low_rank, found.parameters
    bias_N = base.bias(module)
    new_bias_N = read(parameters["bias"]) if "bias" in parameters else bias_N
    factor_N = input_K = weight = None
    if "weight" in parameters:
        weight_NK = base.as_held(module, "weight", read(parameters["weight"]))
        weight = base.linear(weight_NK, rest_dtype(parameters["weight"], weight_NK.dtype))
        bias_N = None  # the weight alone comes before what follows
        if new_bias_N is not None and len(new_bias_N) != len(weight_NK):
            raise PackageError(
                f"module {module}: the adapter has a weight of {len(weight_NK)} rows and no bias "
                f"for them, and the base model one of {len(new_bias_N)}",
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


def rest_dtype(tensor: TensorInfo, held: torch.dtype) -> torch.dtype:
    """Return in which format `tensor` rests, of which the base would hold numbers of `held`."""
    is_as_saved = held is torch.float32 and rests_as_saved(tensor)
    return DTYPES[FORMATS[tensor.dtype]] if is_as_saved else held


def split_edits(
    layers: Mapping[LayerPlace, LayerEdit], feeders: Mapping[LayerPlace, LayerPlace]
) -> tuple[dict[LayerPlace, Affine], dict[LayerPlace, LayerEdit]]:
    """Return what of `layers` is a factor or a shift of outputs, and the rest.

    To multiply what a layer takes is to multiply what makes it, wherever that has a feeder.
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
    """Demand that what DoRA multiplies the output of `module` with is finite.

    Raises:
        PackageError: It is not.
    """
    if not factor_N.isfinite().all():
        raise PackageError(
            f"module {module}: the magnitude of DoRA over the length of a row of weights is not "
            "finite",
            "ADAPTER_NOT_FINITE",
        )


def weight_rows(
    module: str, found: Found, base: BaseLayers, read: Read
) -> Callable[[int, int], torch.Tensor]:
    """Return what gives rows of the weight on which the low-rank change of `module` stands.

    They are where the base is.
    """
    if "weight" not in found.parameters:
        return lambda start, end: base.rows(module, start, end)
    weight_NK = read(found.parameters["weight"])
    return lambda start, end: weight_NK[start:end].to(base.device)


def _row_lengths(module: str, found: Found, base: BaseLayers, read: Read) -> torch.Tensor:
    """Return the length of each row of the weight with its low-rank change, [N]."""
    low_rank = found.low_rank
    assert low_rank is not None
    rows = weight_rows(module, found, base, read)
    # All of the base is looked at, and it is not to come to the host for that.
    a_RK = read(low_rank.a).to(base.device)
    b_NR = read(low_rank.b).to(base.device) * low_rank.scale
    pieces = []
    for start in range(0, len(b_NR), ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, len(b_NR))
        changed_NK = torch.addmm(rows(start, end), b_NR[start:end], a_RK)
        pieces.append(torch.linalg.vector_norm(changed_NK, dim=1))
    return torch.cat(pieces).cpu()
