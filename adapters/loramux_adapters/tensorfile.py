"""The safetensors format, read strictly: every number is validated before use.

A file has an 8-byte little-endian header length, a JSON header that maps tensor names to dtype,
shape and byte range, and the data. Format: https://github.com/huggingface/safetensors. This reader
accepts less than the format allows: what an adapter never needs is refused with a precise error.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.strict_json import parse_object

MAX_NAME_BYTES = 256
MAX_DIMENSION = 1 << 32
MAX_DIMENSIONS = 3
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
INTEGER_BYTES = {"U8": 1, "I16": 2, "I32": 4, "I64": 8}
"""Dtypes of indices, which some methods save beside their weights."""
_COPY_BYTES = 1 << 20

_VALUES = 10
"""JSON values per tensor, at most; each takes far more memory than bytes in the file."""
_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip or torch pickle file",
    b"\x80": "a pickle file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip file",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for a header."""

    num_bytes: int
    num_tensors: int


PACKAGE = Limits(1 << 20, 4096)
"""For a package, which a server reads at each load."""
FOLDER = Limits(16 << 20, 3 << 15)
"""For PEFT's files, which are read once: up to 58 layers of 256 experts with factors for each."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Position, dtype and shape of one tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte, from the end of the header."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The header of a tensor file; the data stay in the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    """Position of the first tensor byte in the file."""


ReadTensor = Callable[[TensorInfo], Iterable[bytes]]
"""Yields the bytes of a tensor in chunks."""


def read_header(
    file: BinaryIO,
    size: int,
    *,
    is_foreign: bool = False,
    limits: Limits = PACKAGE,
    item_bytes: Mapping[str, int] = ITEM_BYTES,
    max_dimensions: int = MAX_DIMENSIONS,
) -> TensorFile:
    """Read and validate the header of `file`, which is `size` bytes long.

    With `is_foreign`, tensors may be scalar or empty, as other tools save them. `item_bytes` has
    the allowed dtypes, and `max_dimensions` is the maximum number of dimensions.

    Raises:
        PackageError: The file violates the format, a limit of this module, or one of `limits`.
    """
    file.seek(0)
    start = file.read(8)
    if len(start) < 8:
        raise PackageError(f"the file has {len(start)} bytes; a tensor file has at least 8")
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic) and not _is_plausible(start, size, limits):
            raise PackageError(f"the file is {what}, not safetensors")
    (length,) = struct.unpack("<Q", start)
    if length > limits.num_bytes:
        raise PackageError(f"header length {length} is above the limit of {limits.num_bytes} bytes")
    if length < 2 or 8 + length > size:
        raise PackageError(f"header length {length} does not fit a file of {size} bytes")
    raw = file.read(length)
    if len(raw) != length:
        raise PackageError(f"the file ends inside the header, after {8 + len(raw)} bytes")
    if not raw.startswith(b"{"):
        raise PackageError("the header does not begin with '{'")
    num_values = sum(raw.count(mark) for mark in (b",", b"[", b"{"))
    if num_values > _VALUES * limits.num_tensors + PACKAGE.num_bytes:
        raise PackageError(
            f"the header has {num_values} values, too many for {limits.num_tensors} tensors"
        )
    try:
        header = parse_object(raw.rstrip(b" "), "the header")
    except ValueError as error:
        raise PackageError(str(error)) from None
    metadata = _metadata(header.pop("__metadata__", {}))
    _check_count(len(header), limits)
    least = 0 if is_foreign else 1
    tensors = [
        _tensor(name, entry, least, item_bytes, max_dimensions) for name, entry in header.items()
    ]
    _check_ranges(tensors, size - 8 - length)
    return TensorFile({tensor.name: tensor for tensor in tensors}, metadata, 8 + length)


def tensor_reader(file: BinaryIO, data_start: int) -> ReadTensor:
    """Return a reader of the tensors in `file`, whose data begin at `data_start`."""

    def read(tensor: TensorInfo) -> Iterator[bytes]:
        file.seek(data_start + tensor.offset)
        left = tensor.num_bytes
        while left:
            chunk = file.read(min(left, _COPY_BYTES))
            if not chunk:
                raise PackageError(
                    f"the file ended inside tensor {tensor.name}: it was changed while being read"
                )
            yield chunk
            left -= len(chunk)

    return read


def encode_header(
    tensors: Iterable[TensorInfo], metadata: Mapping[str, str], *, limits: Limits = PACKAGE
) -> bytes:
    """Return length and header for `tensors` in their order; equal input gives equal bytes.

    Raises:
        PackageError: The header exceeds `limits`.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.offset, tensor.offset + tensor.num_bytes],
        }
    _check_count(len(header) - 1, limits)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > limits.num_bytes:
        raise PackageError(f"the header needs {len(raw)} bytes; the limit is {limits.num_bytes}")
    return struct.pack("<Q", len(raw)) + raw


def _is_plausible(start: bytes, size: int, limits: Limits) -> bool:
    (length,) = struct.unpack("<Q", start)
    return bool(2 <= length <= min(limits.num_bytes, size - 8))


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.num_tensors:
        raise PackageError(f"{count} tensors are more than the limit of {limits.num_tensors}")


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise PackageError("__metadata__ is not an object")
    for key, entry in value.items():
        if not isinstance(entry, str):
            raise PackageError(f"__metadata__[{shown(key)}] is {shown(entry)}, not a string")
    return value


def _tensor(
    name: str, entry: object, least: int, item_bytes: Mapping[str, int], max_dimensions: int
) -> TensorInfo:
    if len(name) > MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise PackageError(
            f"tensor name {shown(name)} is not valid: letters, digits, '_' and '-' in parts "
            f"joined by '.', at most {MAX_NAME_BYTES} bytes"
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise PackageError(f"tensor {name}: expected dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise PackageError(
            f"tensor {name}: dtype is {shown(dtype)}; expected one of {', '.join(item_bytes)}"
        )
    shape = _integers(entry["shape"], f"tensor {name}: shape")
    is_known = least <= len(shape) <= max_dimensions
    if not is_known or not all(least <= size <= MAX_DIMENSION for size in shape):
        raise PackageError(
            f"tensor {name}: shape {shown(shape)} is not valid; expected 1 to {max_dimensions} "
            f"sizes of at least {least}"
        )
    offsets = _integers(entry["data_offsets"], f"tensor {name}: data_offsets")
    if len(offsets) != 2 or not 0 <= offsets[0] < offsets[1] + (1 - least):
        raise PackageError(f"tensor {name}: data_offsets {shown(offsets)} are not in order")
    expected = math.prod(shape) * item_bytes[dtype]
    if offsets[1] - offsets[0] != expected:
        raise PackageError(
            f"tensor {name}: {dtype} of shape {shown(shape)} needs {expected} bytes, "
            f"but data_offsets span {shown(offsets[1] - offsets[0])}"
        )
    return TensorInfo(name, dtype, tuple(shape), offsets[0], expected)


def _integers(value: object, what: str) -> list[int]:
    # bool is an int in Python but not in the format.
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise PackageError(f"{what} is {shown(value)}; expected a list of integers")
    return value


def _check_ranges(tensors: list[TensorInfo], data_bytes: int) -> None:
    """Check that the tensors cover the data exactly: no gap, no overlap, nothing after."""
    if not tensors:
        raise PackageError("the file holds no tensors")
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            fault = "overlaps the one before" if tensor.offset < end else "leaves a gap before it"
            raise PackageError(
                f"tensor {tensor.name}: offset {shown(tensor.offset)} {fault} (end {end})"
            )
        end += tensor.num_bytes
    if end != data_bytes:
        raise PackageError(f"the tensors need {end} bytes, but the file has {data_bytes}")
