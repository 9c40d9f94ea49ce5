"""A base model as a transformers folder: its layers, read from config and safetensors headers."""

import itertools
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from loramux_adapters.base_names import is_vision_module, vision_names
from loramux_adapters.base_tensor import BaseTensor
from loramux_adapters.contents import Contents
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.experts import (
    ExpertsShape,
    names_of_experts,
    names_of_parameter,
    names_together,
)
from loramux_adapters.known_layers import features_like, names_like
from loramux_adapters.packed_base import packed_weights
from loramux_adapters.token_shape import TokenShape, token_shape

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_JSON_BYTES = 100 << 20
"""The limit that safetensors sets for a header."""

CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_SAVED_AS = {"model.": "backbone.", ".forget_gate.": ".", ".mlp.": ".block_sparse_moe."}
"""Part of a module's name -> the name in checkpoints of Nemotron-H or Kimi Linear."""
_TIED = frozenset({"lm_head.weight", "embed_out.weight"})
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


@dataclass(frozen=True, slots=True)
class BaseLayer:
    """A layer that an adapter can change."""

    weight: BaseTensor
    is_transposed: bool
    """Whether the weight is [in_features, out_features], as for Conv1D and embeddings."""

    @property
    def features(self) -> tuple[int, int]:
        """(in_features, out_features)."""
        rows, columns = self.weight.shape
        return (rows, columns) if self.is_transposed else (columns, rows)


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """The layers of a base model; the weights are not loaded."""

    path: Path
    model_type: str
    tensors: dict[str, BaseTensor]
    token: TokenShape | None = None
    """Its `TokenShape`; None if its config does not tell."""

    @property
    def folder(self) -> "BaseFolder":
        """This folder."""
        return self

    @property
    def weight_files(self) -> set[str]:
        """Names of the files that hold the weights."""
        return {tensor.file for tensor in self.tensors.values()}

    def layer(self, module: str, *, is_embedding: bool = False) -> BaseLayer | None:
        """Return the layer `module`; None if the folder has no matrix of that name."""
        tensor = self.parameter(f"{module}.weight")
        if tensor is None or len(tensor.shape) != 2:
            return None
        last = module.rpartition(".")[2]
        is_conv1d = self.model_type in CONV1D_MODELS and last in _CONV1D_LAYERS
        return BaseLayer(tensor, is_conv1d or is_embedding)

    def parameter(self, name: str) -> BaseTensor | None:
        """Return the parameter `name`; None if the folder has none.

        Checkpoints name a parameter differently than adapters do: those of a bare model lack the
        first part of the name; those of a model with a head have a part more than adapters for the
        bare model; some architectures have other parts. A tied output layer has no weight of its
        own and uses that of the embeddings. Vision modules are named differently in each version
        of transformers.
        """
        names = [
            each
            for known in names_of_parameter(name)
            for each in (
                known,
                known.partition(".")[2],
                *(known.replace(part, saved, 1) for part, saved in _SAVED_AS.items()),
            )
        ]
        if is_vision_module(name):
            names += vision_names(name)
        found = next((self.tensors[each] for each in names if each in self.tensors), None)
        if found is None and name in _TIED:
            tied = [each for key, each in self.tensors.items() if key.endswith(_EMBEDDINGS)]
            found = tied[0] if len(tied) == 1 else None
        if found is None:
            behind = [each for key, each in self.tensors.items() if key.partition(".")[2] == name]
            found = behind[0] if len(behind) == 1 else None
        return found

    def features_of(self, module: str) -> tuple[int, int] | None:
        """Return (in_features, out_features) of the layer `module`; see `features_like`."""
        if layer := self.layer(module):
            return layer.features
        layers = ((name, self.layer(name)) for name in self.layer_names())
        return features_like(module, {name: layer.features for name, layer in layers if layer})

    def layer_like(self, module: str) -> BaseLayer | None:
        """Return the layer that an adapter calls `module`; None if that is ambiguous or unknown."""
        if layer := self.layer(module):
            return layer
        found = names_like(module, self.layer_names())
        return self.layer(found[0]) if len(found) == 1 else None

    def bias_of(self, layer: BaseLayer) -> BaseTensor | None:
        """Return the bias of `layer`, a layer of this folder; None if it has none."""
        weight = next(name for name, tensor in self.tensors.items() if tensor == layer.weight)
        return self.tensors.get(f"{weight.removesuffix('.weight')}.bias")

    def layer_names(self) -> list[str]:
        """Return the names of all layers, as in the checkpoint."""
        weights = (name for name in self.tensors if name.endswith(".weight"))
        return [name for weight in weights if self.layer(name := weight.removesuffix(".weight"))]

    def features(self, contents: Contents) -> dict[str, tuple[int, int]]:
        """Return (in_features, out_features) of the layers of `contents` that exist here."""
        embeddings = {module.module for module in contents.modules if module.is_embedding}
        layers = {
            module: self.layer(module, is_embedding=module in embeddings)
            for module in contents.changed_modules
        }
        return {name: layer.features for name, layer in layers.items() if layer}

    def experts(self, contents: Contents) -> dict[str, ExpertsShape]:
        """Return the shapes of the experts that `contents` changes and that exist here."""
        shapes = {change.module: self._experts(change.module) for change in contents.experts}
        return {name: shape for name, shape in shapes.items() if shape}

    def _experts(self, module: str) -> ExpertsShape | None:
        """Return the shape of the experts `module`, which may be stored stacked or one by one.

        MXFP4 stores blocks of 32 four-bit numbers, two in a byte.
        """
        for together in names_together(module):
            found = map(self.parameter, together)
            first, last = (tensor.shape if tensor else () for tensor in found)
            if len(first) == len(last) == 3:
                count, *sizes = last
                # Some models store them transposed; then the widths do not match here.
                inner, width = sizes[::-1] if first[2] == last[1] else sizes
                return ExpertsShape(count, width, inner)
        blocks = self.parameter(f"{module}.down_proj_blocks")
        if blocks and len(blocks.shape) == 4:
            count, width, per_row, per_block = blocks.shape
            return ExpertsShape(count, width, 2 * per_row * per_block)
        for name in names_of_experts(module):
            for down in ("down_proj", "w2"):
                names = (f"{name}.{number}.{down}.weight" for number in itertools.count())
                alone = list(itertools.takewhile(bool, map(self.parameter, names)))
                if alone and alone[0] and len(alone[0].shape) == 2:
                    return ExpertsShape(len(alone), *alone[0].shape)
        return None

    def parameters(self, contents: Contents) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters that `contents` replaces and that exist here."""
        names = {f"{edit.module}.{edit.parameter or 'bias'}" for edit in contents.edits}
        found = {name: self.parameter(name) for name in names}
        return {name: tensor.shape for name, tensor in found.items() if tensor}


def read_base(folder: Path) -> BaseFolder:
    """Return the layers of the safetensors checkpoint that transformers saved in `folder`.

    Raises:
        PackageError: `folder` is not such a checkpoint.
    """
    config = _json(folder / CONFIG_FILE)
    index = folder / INDEX_FILE
    files: set[object] = {WEIGHT_FILE}
    if index.exists() and not (folder / WEIGHT_FILE).exists():
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise _fault(index, "has no weight_map")
        files = set(weight_map.values())
    tensors: dict[str, BaseTensor] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise _fault(index, f"names the file {shown(name)}, which is not in the folder")
        tensors |= _header(folder / name)
    try:
        tensors |= packed_weights(folder, tensors)
    except OSError as error:
        raise _fault(folder, f"cannot be read ({error.strerror})") from None
    return BaseFolder(folder, str(config.get("model_type")), tensors, token_shape(config))


def _header(path: Path) -> dict[str, BaseTensor]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_JSON_BYTES, size - 8):
                raise _fault(path, "is not a safetensors file")
            header = _object(path, file.read(length))
    except OSError as error:
        raise _fault(path, f"cannot be read ({error.strerror})") from None
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: object, start: int, size: int) -> BaseTensor:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
        } if all(type(width) is int for width in shape) and 0 <= begin <= end <= size - start:
            return BaseTensor(path.name, dtype, tuple(shape), start + begin, end - begin)
        case _:
            raise _fault(path, f"has a malformed tensor {shown(name)}")


def _json(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise _fault(path, f"is above {MAX_JSON_BYTES} bytes")
        return _object(path, path.read_bytes())
    except OSError as error:
        raise _fault(path, f"cannot be read ({error.strerror}): expected a model folder") from None


def _object(path: Path, raw: bytes) -> dict[str, object]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise _fault(path, "is not valid JSON") from None
    if not isinstance(value, dict):
        raise _fault(path, "is not a JSON object")
    return value


def _fault(path: Path, what: str) -> PackageError:
    return PackageError(f"base model: {path} {what}", "ADAPTER_BASE_MISMATCH")
