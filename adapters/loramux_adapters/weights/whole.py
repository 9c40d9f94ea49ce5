"""Layers that an adapter changes by no low rank, with the change in the weights of the base.

They are as large as the layers of the base, and are written as PEFT's `LN_TUNING` has modules that
were trained whole, whatever they are.

Legend: I input features, O output features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loramux_adapters.base import BaseFolder, BaseLayer
from loramux_adapters.fields import PREFIX
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.packing import Output, write_package
from loramux_adapters.tensorfile import ReadTensor, TensorInfo
from loramux_adapters.weights.base_weight import base_layer, stored_weight
from loramux_adapters.weights.spectrum import Wide
from loramux_adapters.weights.update import stored

_KEPT = (
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "modules_to_save",
)  # fmt: skip
"""Fields that mean the same in a config of LN_TUNING."""
Change = Callable[[Wide], Wide]
"""Weight [O, I] of the base -> that with the adapter in it."""


@dataclass(frozen=True, slots=True)
class WholeLayers:
    """Layers of a base, and what an adapter makes of them."""

    changes: Mapping[str, Change]
    """By the name of the layer."""
    base: KnownLayers | None
    changes_bias: bool
    """Whether a bias changes as one more column of the weight does."""

    def write(
        self,
        as_lora: Mapping[str, object],
        output: Output,
        *,
        notes: Mapping[str, object],
        source: Path,
        saved: tuple[Mapping[str, TensorInfo], ReadTensor],
    ) -> None:
        """Write a package of the layers, with `notes` and those in the folder `source`.

        Each keeps the dtype of the base, as if it were merged. One is in memory at a time.

        Args:
            as_lora: The adapter's config, as one of LoRA.
            output: What to write to.
            notes: Notes of the package.
            source: The folder of the adapter.
            saved: Tensors that are written as they are, and what yields their bytes.

        Raises:
            PackageError: A layer is not in the base, which may be quantised, or not finite.
        """
        kept, read_kept = saved
        places = dict(self._places())
        tensors = dict(kept)
        for name, (_, _, layer) in places.items():
            weight = layer.weight
            tensors[name] = TensorInfo(name, weight.dtype, weight.shape, 0, weight.num_bytes)

        def read(tensor: TensorInfo) -> Iterable[bytes]:
            return (
                read_kept(tensor) if tensor.name in kept else [self._changed(*places[tensor.name])]
            )

        config = {name: as_lora[name] for name in _KEPT if name in as_lora}
        config |= {"peft_type": "LN_TUNING", "target_modules": sorted(self.changes)}
        write_package(config, tensors, read, output, notes=notes, source=source)

    def _places(self) -> Iterator[tuple[str, tuple[str, BaseFolder, BaseLayer]]]:
        """Yield the name of each tensor, its module, and where it is in the base."""
        for module in self.changes:
            folder, layer = base_layer(self.base, module, "the adapter")
            yield f"{PREFIX}{module}.ln_tuning_layers.weight", (module, folder, layer)
            bias = folder.bias_beside(layer) if self.changes_bias else None
            if bias:
                yield (
                    f"{PREFIX}{module}.ln_tuning_layers.bias",
                    (module, folder, BaseLayer(bias, False)),
                )

    def _changed(self, module: str, folder: BaseFolder, layer: BaseLayer) -> bytes:
        before = stored_weight(folder.path, layer, module).astype(np.float64)
        is_bias = before.ndim == 1
        wide = before[:, None] if is_bias else before.T if layer.is_transposed else before
        after = self.changes[module](wide)
        after = after[:, 0] if is_bias else after.T if layer.is_transposed else after
        return stored(
            after.astype(np.float32), layer.weight.dtype, f"module {module}, with the adapter"
        )
