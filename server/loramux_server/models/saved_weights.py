"""Saved weights of a model: single ones, or all, read on demand."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from loramux_server.models.dequantize.layout import Slice

_PLAIN = ("F64", "F32", "F16", "BF16")


class SavedWeights:
    """The safetensors weights in a folder or of a hub id."""

    def __init__(self, path: str) -> None:
        """Read the names of all weights of `path`.

        Raises:
            OSError: There are none.
        """
        self._files = {name: file for file in _files(path) for name in _names(file)}

    def slices(self) -> dict[str, Slice]:
        """Return all weights by name; each is read from its file when it is indexed."""
        opened: dict[str, Any] = {
            file: safe_open(file, framework="pt") for file in set(self._files.values())
        }
        return {name: opened[file].get_slice(name) for name, file in self._files.items()}

    def read(self, names: Iterable[str]) -> torch.Tensor | None:
        """Return the first of `names` that exists, as float32; None if none does.

        Quantized weights do not count: they are meaningless without their scales.
        """
        for name in names:
            if name in self._files:
                with safe_open(self._files[name], framework="pt") as file:
                    if file.get_slice(name).get_dtype() in _PLAIN:
                        value: torch.Tensor = file.get_tensor(name)
                        return value.float()
        return None


def _files(path: str) -> Iterator[str]:
    """Yield the paths of the weight files: a single one if it exists, else the shards."""
    names = [SAFE_WEIGHTS_NAME]
    if not _has(path, SAFE_WEIGHTS_NAME) and _has(path, SAFE_WEIGHTS_INDEX_NAME):
        index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME)
        names = sorted(set(json.loads(Path(str(index)).read_text())["weight_map"].values()))
    for name in names:
        yield str(cached_file(path, name))


def _has(path: str, name: str) -> bool:
    try:
        return cached_file(path, name) is not None
    except OSError:
        return False


def _names(file: str) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())
