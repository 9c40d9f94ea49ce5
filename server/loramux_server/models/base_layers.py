"""The layers of a base model as adapters are packed for them."""

from collections.abc import Callable, Mapping

import torch

from loramux_adapters import Package, PackageError
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.weights.dtypes import Array
from loramux_server.lora.edits import Edits
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.packed_edits import pack_edits
from loramux_server.models.base_model import BaseModel


class BaseLayers:
    """What a package is packed for: see `lora.packed.Base` and `lora.packed_edits.BaseLayers`."""

    def __init__(self, model: BaseModel) -> None:
        self._groups = model.groups
        self.places: Mapping[str, LayerPlace] = model.places
        self.num_groups = len(model.groups)
        self.max_parts = max(group.shape.num_parts for group in model.groups)

    def bias(self, module: str) -> torch.Tensor | None:
        """Return the bias of a layer, float32 in memory of the host; None if it has none."""
        place = self.places[module]
        return self._groups[place.group].bias(place.part)

    def rows(self, module: str, start: int, end: int) -> torch.Tensor:
        """Return some rows of the weight of a layer, [rows, K], float32 in memory of the host.

        Raises:
            PackageError: They cannot be had.
        """
        place = self.places[module]
        try:
            return self._groups[place.group].rows(place.part, start, end).cpu()
        except ValueError:
            raise PackageError(
                f"module {module}: DoRA needs the weights of the base, which are quantised",
                "UNSUPPORTED_ADAPTER_FEATURE",
            ) from None

    def edits(self, package: Package, read: Callable[[TensorInfo], Array]) -> Edits | None:
        """Return what `package`, whose tensors `read` returns, does beside low-rank changes.

        Raises:
            PackageError: That cannot be done to the base.
        """
        return pack_edits(package, self, lambda tensor: torch.from_numpy(read(tensor).copy()))
