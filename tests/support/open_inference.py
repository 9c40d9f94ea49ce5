"""Requests of the Open Inference Protocol, and calls of it without a client of others."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc

from loramux_server.inference import open_inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def call(channel: grpc.Channel, name: str, request: Any, **options: Any) -> Any:
    """Call a method, by default for a minute at most; a stream takes and gives many messages."""
    method = SERVICE.methods_by_name[name]
    kind: Any = channel.stream_stream if method.client_streaming else channel.unary_unary
    answer = getattr(pb, method.output_type.name)
    behaviour = kind(
        f"/{SERVICE.full_name}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    return behaviour(request, **{"timeout": 60} | options)


def asking(
    model: str,
    *texts: str | bytes,
    version: str = "",
    id: str = "",
    shape: Sequence[int] | None = None,
    parameters: dict[str, Any] | None = None,
    sampling: Sequence[str | bytes] = (),
    flags: dict[str, bool] | None = None,
    outputs: Iterable[str] = (),
) -> pb.ModelInferRequest:
    """Return a request whose elements are in the fields for their types."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    add_texts(request, "text_input", texts, shape)
    if sampling:
        add_texts(request, "sampling_parameters", sampling)
    for name, value in (flags or {}).items():
        given = request.inputs.add(name=name, datatype="BOOL", shape=[1])
        given.contents.bool_contents.append(value)
    for name, value in (parameters or {}).items():
        set_parameter(request.parameters[name], value)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def add_texts(
    request: pb.ModelInferRequest, name: str, texts: Sequence[str | bytes],
    shape: Sequence[int] | None = None,
) -> None:  # fmt: skip
    given = request.inputs.add(name=name, datatype="BYTES", shape=shape or [len(texts)])
    given.contents.bytes_contents.extend(
        text.encode() if isinstance(text, str) else text for text in texts
    )


def set_parameter(parameter: pb.InferParameter, value: Any) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(parameter, kinds[type(value)], value)


def as_raw(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """Return `request` with its elements as bytes, as Triton's clients send them."""
    raw = pb.ModelInferRequest.FromString(request.SerializeToString())
    for given in raw.inputs:
        elements = given.contents
        raw.raw_input_contents.append(
            packed(elements.bytes_contents) + bytes(elements.bool_contents)
        )
        given.ClearField("contents")
    return raw


def packed(elements: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def unpacked(raw: bytes) -> Iterator[bytes]:
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        yield raw[4 : 4 + size]
        raw = raw[4 + size :]


def texts_of(response: pb.ModelInferResponse, name: str = "text_output") -> list[str]:
    """Return the elements of an output that are text."""
    (index,) = [i for i, output in enumerate(response.outputs) if output.name == name]
    if response.raw_output_contents:
        found: Iterable[bytes] = unpacked(response.raw_output_contents[index])
    else:
        found = response.outputs[index].contents.bytes_contents
    return [each.decode() for each in found]


def numbers_of(response: pb.ModelInferResponse, name: str) -> list[int]:
    """Return the elements of an output that are numbers."""
    (output,) = [output for output in response.outputs if output.name == name]
    return list(output.contents.uint_contents)
