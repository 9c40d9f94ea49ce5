"""The layers of a base model, as seen by the code that packs adapters for them."""

from collections.abc import Callable, Mapping

import torch

from loramux_adapters import Package, PackageError
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.weights.dtypes import Array
from loramux_server.kernels.saved_linear import SavedLinear
from loramux_server.lora.edits import Edits
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.packed_modules import pack_edits
from loramux_server.models.base_model import BaseModel
from loramux_server.models.fused import GatedMlp, RmsNorm
from loramux_server.wire.model_info import describe_no_vision


class BaseLayers:
    """The base that a package is packed for.

    See `lora.packed.Base`, `lora.packed_edits.BaseLayers` and `lora.vision_adapter.VisionBase`.
    """

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self._groups = model.groups
        self.places: Mapping[str, LayerPlace] = model.places
        self.modules = model.editor.modules.keys()
        self.feeders: Mapping[LayerPlace, LayerPlace] = {
            mlp.down_proj.place: mlp.gate_up.place(1)
            for part in (model.module, *(model.stack.originals if model.stack else ()))
            for mlp in part.modules()
            if isinstance(mlp, GatedMlp)
        }
        self.experts = {name: each.shape for name, each in model.experts.items()}
        vision = model.vision
        self.vision_layers = vision.layers if vision else {}
        self.vision_parameters = vision.parameters if vision else {}
        self.vision_modules = {name.rpartition(".")[0] for name in self.vision_parameters}
        self.no_vision_reason = (
            "" if vision else describe_no_vision(model.architecture, model.no_vision_reason)
        )
        self.num_groups = len(model.groups)
        self.max_parts = max(group.shape.num_parts for group in model.groups)
        self.vocabulary = model.replaceable.vocabulary
        self.heads = model.heads
        self.head_shapes = model.heads.shapes if model.heads else {}
        self.dtype = model.dtype
        self.device = model.device

    def is_outer_module(self, module: str) -> bool:
        """Return whether `module` lies outside the fused decoder layers, before or after them."""
        stack = self._model.stack
        return stack is not None and not stack.holds(self._model.editor.modules[module])

    def bias(self, module: str) -> torch.Tensor | None:
        """Return the bias of a layer, float32 on the host; None if it has none."""
        if self._model.output and module == self.vocabulary.output:
            return self._model.output.bias
        place = self.places[module]
        return self._groups[place.group].bias(place.part)

    def rows(self, module: str, start: int, end: int) -> torch.Tensor:
        """Return some rows of the weight of a layer or of the embedding.

        They are [rows, K], float32, on the model's device.

        Raises:
            PackageError: The weight is quantized and cannot be read.
        """
        try:
            if module == self.vocabulary.embedding:
                return self._model.embedding.rows(start, end)
            if self._model.output and module == self.vocabulary.output:
                return self._model.output.rows(start, end)
            place = self.places[module]
            return self._groups[place.group].rows(place.part, start, end)
        except ValueError:
            raise PackageError(
                f"module {module}: DoRA needs the weights of the base, which are quantized",
                "UNSUPPORTED_ADAPTER_FEATURE",
            ) from None

    def as_held(self, module: str, parameter: str, value: torch.Tensor) -> torch.Tensor:
        """Return a parameter of `module`, as PEFT saves it, in the form that it has here."""
        if module in self._model.replaceable.transposed and parameter == "weight":
            value = value.T.contiguous()
        if module in self.places or module in (self.vocabulary.embedding, self.vocabulary.output):
            return value.to(self.dtype)
        part = self._model.editor.modules[module]
        held = value.to(getattr(part, parameter).dtype)
        return held + part.offset if isinstance(part, RmsNorm) else held

    def linear(self, weight_NK: torch.Tensor, dtype: torch.dtype) -> SavedLinear:
        """Return a layer with this weight, which is in the model's dtype, stored in `dtype`."""
        return self._model.step.backend.make_saved_linear(weight_NK, dtype)

    def edits(self, package: Package, read: Callable[[TensorInfo], Array]) -> Edits | None:
        """Return what `package` changes apart from rank rows; `read` reads its tensors.

        Raises:
            PackageError: The change is not possible on this base.
        """
        return pack_edits(package, self, lambda tensor: torch.from_numpy(read(tensor).copy()))
