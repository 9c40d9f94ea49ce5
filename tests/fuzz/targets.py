"""What there is to try: files in this process, calls over a real socket."""

import io
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from loramux.v1 import (
    adapters_pb2,
    aliases_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    quarantine_pb2,
    question_answering_pb2,
    residency_pb2,
    server_pb2,
    uploads_pb2,
)
from loramux_adapters import PackageError, read_package
from loramux_adapters.tensorfile import read_header
from loramux_server.inference import open_inference_pb2
from tests.fuzz.inputs import configs, files, manifests, metadata, requests
from tests.fuzz.target import FindingError, Target
from tests.support.fake_server import DIES, STOPS
from tests.support.server import RunningServer
from tests.support.wire import refusal

MODULES = (
    adapters_pb2, aliases_pb2, classification_pb2, embedding_pb2, generation_pb2,
    open_inference_pb2, quarantine_pb2, question_answering_pb2, residency_pb2, server_pb2,
    uploads_pb2,
)  # fmt: skip
NEVER = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
PATIENCE = 0.5
"""Seconds for a call; streams that only watch would never end."""


def file_targets() -> list[Target]:
    """Return what reads files."""
    return [
        Target("tensor header", files(), _read_header),
        Target("manifest", manifests(), _read_package),
        Target("config", configs(), _read_package),
    ]


def wire_targets(server: RunningServer, channel: grpc.Channel) -> list[Target]:
    """Return what a running server takes: bytes for any method, and metadata."""
    services = [s for module in MODULES for s in module.DESCRIPTOR.services_by_name.values()]
    methods = {m.full_name: m for service in services for m in service.methods}
    calls = st.sampled_from(sorted(methods)).flatmap(
        lambda name: st.tuples(st.just(name), requests(methods[name].input_type))
    )

    def wire(given: tuple[str, bytes]) -> str:
        name, raw = given
        if _does_harm(methods[name], raw):
            return "left out"
        return _call(channel, methods[name], raw, ())

    def with_metadata(pairs: list[tuple[str, str | bytes]]) -> str:
        listing = methods["loramux.v1.AdapterService.ListAdapters"]
        return _call(channel, listing, b"", tuple(pairs))

    return [
        Target("wire", calls, wire, server.pid),
        Target("metadata", metadata(), with_metadata, server.pid),
    ]


def _read_header(raw: bytes) -> str:
    try:
        read_header(io.BytesIO(raw), len(raw))
    except PackageError:
        return "refused"
    return "accepted"


def _read_package(raw: bytes) -> str:
    try:
        read_package(io.BytesIO(raw), len(raw))
    except PackageError as error:
        if not error.reason:
            raise FindingError("a refusal without a reason") from error
        return "refused"
    return "accepted"


def _does_harm(method: MethodDescriptor, raw: bytes) -> bool:
    """Return whether the fake engine would take this as the order to die."""
    if method.input_type.name != "GenerateRequest":
        return False
    try:
        tokens = generation_pb2.GenerateRequest.FromString(raw).prompt_token_ids
    except DecodeError:
        return False
    return bool(tokens) and DIES <= tokens[0] <= STOPS


def _call(
    channel: grpc.Channel, method: MethodDescriptor, raw: bytes, pairs: tuple[Any, ...]
) -> str:
    """Make a call and return its status."""
    kinds = ["stream" if s else "unary" for s in (method.client_streaming, method.server_streaming)]
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    call = getattr(channel, "_".join(kinds))(path, request_serializer=None)
    try:
        answer = call(iter([raw]) if method.client_streaming else raw, timeout=PATIENCE,
                      metadata=pairs)  # fmt: skip
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        if error.details() == "Invalid metadata":
            return "not sent"  # gRPC's own client refuses what is no header
        if error.code() in NEVER:
            raise FindingError(f"{path}: {error.code()} {error.details()}") from None
        refusal(error)  # its two accounts of the cause agree
        return str(error.code().name)
    return "OK"
