"""Full weights of layers whose update has full rank, with the update merged in.

They are as large as the base's layers. The package has PEFT's method `LN_TUNING`, which allows any
modules trained in full.

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
"""Weight [O, I] of the base -> merged weight."""


@dataclass(frozen=True, slots=True)
class FullWeights:
    """Layers of a base, and how an adapter changes their weights."""

    changes: Mapping[str, Change]
    """By name of the layer."""
    base: KnownLayers | None
    changes_bias: bool
    """Whether a bias is changed like a column of the weight."""

    def write(
        self,
        as_lora: Mapping[str, object],
        output: Output,
        *,
        notes: Mapping[str, object],
        source: Path,
        saved: tuple[Mapping[str, TensorInfo], ReadTensor],
    ) -> None:
        """Write a package of the layers, with `notes` and those found in the folder `source`.

        Each layer keeps the dtype of the base, as after merging. One is in memory at a time.

        Args:
            as_lora: The adapter's config as a LoRA config.
            output: Where to write.
            notes: Notes of the package.
            source: The folder of the adapter.
            saved: Tensors that are copied unchanged, and the reader of their bytes.

        Raises:
            PackageError: The base lacks a layer or is quantized, or a weight is not finite.
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
        """Yield the name of each tensor, its module, and its layer in the base."""
        for module in self.changes:
            folder, layer = base_layer(self.base, module, "the adapter")
            yield f"{PREFIX}{module}.ln_tuning_layers.weight", (module, folder, layer)
            bias = folder.bias_of(layer) if self.changes_bias else None
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
