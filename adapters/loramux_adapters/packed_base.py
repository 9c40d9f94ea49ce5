"""Quantized weights of a base that are packed into 32-bit integers: find them and their shapes.

GPTQ and AWQ save a layer as `qweight`, `qzeros` and `scales`; compressed-tensors as
`weight_packed`, `weight_scale` and `weight_shape`. For the layouts see
`loramux_server.models.dequantize`.
"""

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loramux_adapters.base_tensor import BaseTensor

_PAIRS = {"I64": struct.Struct("<2q"), "I32": struct.Struct("<2i")}
_AWQ_BITS = 4
_NONE = BaseTensor("", "", (), 0, 0)


def packed_weights(folder: Path, tensors: Mapping[str, BaseTensor]) -> dict[str, BaseTensor]:
    """Return the packed weights among `tensors`, which are in files of `folder`.

    Name and shape [out_features, in_features] are those of the unpacked weight; offset, size and
    dtype are those of the packed integers.

    Raises:
        OSError: A file cannot be read.
    """
    found = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "qweight":
            scales = tensors.get(f"{layer}.scales", _NONE).shape
            zeros = tensors.get(f"{layer}.qzeros", _NONE).shape
            shape = _shape_of_groups(tensor.shape, scales, zeros)
        elif last == "weight_packed":
            shape = _saved_pair(folder, tensors.get(f"{layer}.weight_shape", _NONE))
        else:
            continue
        if shape:
            found[f"{layer}.weight"] = replace(tensor, shape=shape)
    return found


def _shape_of_groups(
    packed: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of a weight packed along inputs (GPTQ) or outputs (AWQ), or empty."""
    if not len(packed) == len(scales) == len(zeros) == 2 or not scales[1] or not zeros[1]:
        return ()
    bits = 32 * zeros[1] // scales[1]
    if packed[1] == scales[1] and bits:
        return scales[1], packed[0] * 32 // bits
    return (scales[1], packed[0]) if bits == _AWQ_BITS else ()


def _saved_pair(folder: Path, tensor: BaseTensor) -> tuple[int, ...]:
    """Return the two integers in `tensor`; empty if it does not have two."""
    pair = _PAIRS.get(tensor.dtype)
    if pair is None or tensor.num_bytes != pair.size:
        return ()
    with (folder / tensor.file).open("rb") as file:
        file.seek(tensor.offset)
        raw = file.read(pair.size)
    return pair.unpack(raw) if len(raw) == pair.size else ()
