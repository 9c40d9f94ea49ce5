"""LoRA with block-diagonal A or B (BD-LoRA), as plain LoRA with explicit zeros.

Method: "Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA
Serving". Fields: `peft.LoraConfig` and `BdLoraLinearVariant`, PEFT 0.21, which saves the blocks
stacked vertically.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import PREFIX, integer, invalid, names
from loramux_adapters.packing import Output, write_package
from loramux_adapters.peft_config import MAX_RANK, check_config
from loramux_adapters.peft_folder import open_tensors, read_config
from loramux_adapters.tensorfile import ITEM_BYTES, TensorInfo, read_header, tensor_reader

FIELD = "use_bdlora"
_HALVES = {".lora_A.weight": "target_modules_bd_a", ".lora_B.weight": "target_modules_bd_b"}
_KNOWN = frozenset({*_HALVES.values(), "nblocks", "match_strict"})


def pack_bdlora(
    source: Path, output: Output, *, notes: Mapping[str, object | None] | None = None
) -> None:
    """Write the LoRA folder `source`, which has block-diagonal factors, to `output`.

    Raises:
        PackageError: The folder is not such an adapter, or has an unsupported field.
    """
    given = read_config(source)
    config = {name: value for name, value in given.items() if name != FIELD}
    check_config(config)
    count, blocks = _blocks(given[FIELD])
    with open_tensors(source) as file:
        header = read_header(file, os.fstat(file.fileno()).st_size)
        read = tensor_reader(file, header.data_start)
        wide = {
            name: _widened(tensor, count)
            for name, tensor in header.tensors.items()
            if _is_in_blocks(name, blocks)
        }

        def written_out(tensor: TensorInfo) -> Iterable[bytes]:
            if tensor.name not in wide:
                return read(tensor)
            narrow = header.tensors[tensor.name]
            kind = f"<u{ITEM_BYTES[narrow.dtype]}"  # only moved, so any dtype of this width will do
            values = np.frombuffer(b"".join(read(narrow)), kind).reshape(narrow.shape)
            return [_diagonal(values, count).tobytes()]

        write_package(
            config, header.tensors | wide, written_out, output, notes=notes or {}, source=source
        )


def _blocks(value: object) -> tuple[int, dict[str, tuple[str, ...]]]:
    """Return the number of blocks, and for A and B the layers where it has blocks."""
    if not isinstance(value, dict) or not value.keys() <= _KNOWN:
        raise invalid(
            FIELD, f"is {shown(value)}; expected an object of {', '.join(sorted(_KNOWN))}"
        )
    count = integer(value, "nblocks", 1, 1, MAX_RANK, f"{FIELD}.nblocks")
    return count, {ending: names(value, name) for ending, name in _HALVES.items()}


def _is_in_blocks(name: str, blocks: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether the tensor `name` is saved as blocks."""
    for ending, parts in blocks.items():
        if name.startswith(PREFIX) and name.endswith(ending):
            module = name.removeprefix(PREFIX).removesuffix(ending)
            return any(each in module for each in parts)  # PEFT matches any substring of the name
    return False


def _widened(tensor: TensorInfo, count: int) -> TensorInfo:
    if len(tensor.shape) != 2 or tensor.shape[0] % count:
        raise PackageError(
            f"tensor {tensor.name}: shape {shown(list(tensor.shape))} is not a matrix of {count} "
            f"blocks, as required by {FIELD}.nblocks of adapter_config.json",
            "INVALID_ADAPTER_CONFIG",
        )
    rows, columns = tensor.shape
    return replace(tensor, shape=(rows, columns * count), num_bytes=tensor.num_bytes * count)


def _diagonal(blocks: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return vertically stacked `blocks` as a block-diagonal matrix."""
    rows, columns = blocks.shape
    found = np.zeros((count, rows // count, count, columns), blocks.dtype)
    for number, block in enumerate(blocks.reshape(count, -1, columns)):
        found[number, :, number] = block
    return found.reshape(rows, count * columns)
