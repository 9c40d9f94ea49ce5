"""Merging an adapter into the weights of its base: a model folder that needs no adapter."""

import json
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np

from loramux_adapters.base import CONFIG_FILE, INDEX_FILE, BaseFolder
from loramux_adapters.errors import PackageError
from loramux_adapters.fit import check_fit
from loramux_adapters.package import Package
from loramux_adapters.plain import require_low_rank
from loramux_adapters.weights.base_weight import stored_weight
from loramux_adapters.weights.update import Update, read_updates, stored

_OTHER_WEIGHTS = frozenset({
    ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors",
})  # fmt: skip
_TIED = frozenset({"lm_head", "embed_out"})


def merge_into_base(file: BinaryIO, package: Package, base: BaseFolder, folder: Path) -> None:
    """Write the model `base`, with `package` (open as `file`) merged into it, to the new `folder`.

    The folder has the top-level files of the base, except weights in other formats, which would be
    those of the old model. Each weight keeps its dtype; sums are computed in float32.

    Raises:
        PackageError: The adapter does not fit the base, or the base is quantized.
        OSError: A file cannot be read, or the folder exists or cannot be written.
    """
    require_low_rank(package, "merge into the base")
    if package.contents.invocation:
        raise PackageError(
            "the adapter is active only after its alora_invocation_tokens; merged into a base it "
            "would be active everywhere",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    package = package.named_for(base.tensors)
    check_fit(package.contents, base.features(package.contents))
    _check_tied(package, base)
    folder.mkdir()
    for path in sorted(base.path.iterdir()):
        if path.is_file() and (path.name in base.weight_files or not _is_of_weights(path)):
            shutil.copyfile(path, folder / path.name)
    for update in read_updates(file, package):
        _add(update, base, folder)


def _add(update: Update, base: BaseFolder, folder: Path) -> None:
    layer = base.layer(update.module)
    assert layer is not None  # check_fit passed
    before = stored_weight(folder, layer, update.module)
    delta_OI = (update.b_OR @ update.a_RI) * np.float32(update.scale)
    after = before + (delta_OI.T if layer.is_transposed else delta_OI)
    with (folder / layer.weight.file).open("r+b") as target:
        target.seek(layer.weight.offset)
        what = f"module {update.module}, added to the base"
        target.write(stored(after, layer.weight.dtype, what))


def _is_of_weights(path: Path) -> bool:
    is_other_index = path.name.endswith(".index.json") and path.name != INDEX_FILE
    return path.suffix in _OTHER_WEIGHTS or is_other_index


def _check_tied(package: Package, base: BaseFolder) -> None:
    config = json.loads((base.path / CONFIG_FILE).read_bytes())
    if not config.get("tie_word_embeddings"):
        return
    for module in package.modules:
        if module.module.rpartition(".")[2] in _TIED:
            raise PackageError(
                f"module {module.module} shares its weight with the input embeddings "
                "(tie_word_embeddings): merging into it would change both",
                "ADAPTER_BASE_MISMATCH",
            )
