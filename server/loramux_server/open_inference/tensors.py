"""Tensors of the Open Inference Protocol, with typed or raw contents."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loramux.errors import InvalidArgumentError
from loramux_server.field_errors import at_fault, invalid, wrong
from loramux_server.inference import open_inference_pb2

BYTES = "BYTES"
BOOL = "BOOL"
UINT32 = "UINT32"

_CONTENTS = {BYTES: "bytes_contents", BOOL: "bool_contents", UINT32: "uint_contents"}
"""Datatype -> the field of typed contents."""
_SIZE = struct.Struct("<I")
"""Length prefix of a BYTES element in raw contents."""

InputTensor = open_inference_pb2.ModelInferRequest.InferInputTensor
OutputTensor = open_inference_pb2.ModelInferResponse.InferOutputTensor


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor, with its elements in row-major order."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Sequence[Any]
    """bytes, bool or int, by `datatype`."""


def read_tensor(given: InputTensor, raw: bytes | None, datatype: str, most: int) -> Tensor:
    """Parse the tensor `given`, of shape [n] or [n, 1].

    Args:
        given: A tensor of a request.
        raw: Its raw contents; None if it has typed contents.
        datatype: The expected datatype.
        most: The maximum number of elements.

    Raises:
        InvalidArgumentError: Its datatype, shape or contents are invalid.
    """
    name = given.name
    if given.datatype != datatype:
        raise invalid(f"{name}.datatype", given.datatype, f"{datatype!r}")
    if given.parameters:
        raise invalid(f"{name}.parameters", sorted(given.parameters)[0], "none")
    shape = list(given.shape)
    is_column = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if not is_column or not 1 <= shape[0] <= most:
        expected = "[1] or [1, 1]" if most == 1 else f"[n] or [n, 1] with n from 1 to {most}"
        raise invalid(f"{name}.shape", shape, expected)
    if raw is None:
        elements: Sequence[Any] = getattr(given.contents, _CONTENTS[datatype])
        if len(elements) != shape[0]:
            raise at_fault(
                f"{name}.contents",
                f"{name}.contents.{_CONTENTS[datatype]} has {len(elements)} elements, but shape "
                f"{shape} requires {shape[0]}",
            )
        return Tensor(name, datatype, shape, list(elements))
    return Tensor(name, datatype, shape, list(_unpacked(name, raw, datatype, shape[0])))


def write_tensor(
    response: open_inference_pb2.ModelInferResponse, tensor: Tensor, raw: bool
) -> None:
    """Add `tensor` to the outputs of `response`, with `raw` or typed contents."""
    output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    if raw:
        response.raw_output_contents.append(_packed(tensor))
    else:
        getattr(output.contents, _CONTENTS[tensor.datatype]).extend(tensor.elements)


def _packed(tensor: Tensor) -> bytes:
    """Return the raw contents of an output, whose datatype is BYTES or UINT32."""
    if tensor.datatype == BYTES:
        return b"".join(_SIZE.pack(len(each)) + each for each in tensor.elements)
    return struct.pack(f"<{math.prod(tensor.shape)}I", *tensor.elements)


def _unpacked(name: str, raw: bytes, datatype: str, count: int) -> Iterator[Any]:
    """Yield the `count` elements of `raw`, which must hold no more."""
    place = 0
    for index in range(count):
        if datatype == BOOL:
            end = place + 1
            if raw[place:end] not in (b"\0", b"\1"):
                raise _wrong_bytes(name, raw, f"{count} bytes of 0 or 1")
            yield raw[place:end] == b"\1"
        else:
            begin = place + _SIZE.size
            size = _SIZE.unpack_from(raw, place)[0] if begin <= len(raw) else 0
            end = begin + size
            if end > len(raw):
                what = f"{count} elements, each preceded by its length in four bytes"
                raise _wrong_bytes(name, raw, f"{what}; the data ends in element {index}")
            yield raw[begin:end]
        place = end
    if place != len(raw):
        raise _wrong_bytes(name, raw, f"{place} for its {count} elements")


def _wrong_bytes(name: str, raw: bytes, expected: str) -> InvalidArgumentError:
    said = f"of {name} has {len(raw)} bytes; expected {expected}"
    return wrong("raw_input_contents", said)
