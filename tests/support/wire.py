"""Calls without the client: raw bytes in, and what a failed call says about itself."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from loramux.v1 import adapters_pb2, errors_pb2

GENERATE = "/loramux.v1.GenerationService/Generate"
STREAM_GENERATE = "/loramux.v1.GenerationService/StreamGenerate"


@dataclass(frozen=True)
class Refusal:
    """The status of a failed call with everything in its trailing metadata."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    field: str = ""
    retry_delay: float | None = None
    standard: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The `google.rpc` details by the name of their message."""


def refusal(error: grpc.RpcError) -> Refusal:
    """Return what `error` says, after a look that its two accounts of the cause agree."""
    assert isinstance(error, grpc.Call)
    metadata = dict(error.trailing_metadata() or ())
    message = error.details() or ""
    if "loramux-error-bin" not in metadata:  # the transport refused
        return Refusal(error.code(), message)
    detail = errors_pb2.ErrorDetail.FromString(metadata["loramux-error-bin"])
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    standard = {}
    for packed in status.details:
        name = packed.type_url.rpartition(".")[2]
        standard[name] = getattr(error_details_pb2, name).FromString(packed.value)
    reason = errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_")
    delay = None
    if detail.HasField("retry_delay"):
        delay = detail.retry_delay.ToTimedelta().total_seconds()
        assert standard["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == delay
    assert (status.code, status.message) == (error.code().value[0], message)
    assert (standard["ErrorInfo"].reason, standard["ErrorInfo"].domain) == (reason, "loramux")
    if detail.field:
        (violation,) = standard["BadRequest"].field_violations
        assert (violation.field, violation.description) == (detail.field, message)
    else:
        assert "BadRequest" not in standard
    if detail.quota:
        (exceeded,) = standard["QuotaFailure"].violations
        assert (exceeded.subject, exceeded.description) == (detail.quota, message)
    else:
        assert "QuotaFailure" not in standard
    return Refusal(error.code(), message, reason, detail.field, delay, standard)


def send(
    channel: grpc.Channel, method: str, request: bytes, *, timeout: float | None = 60,
    whole: bool = False,
) -> bytes:  # fmt: skip
    """Send `request` as it is and return the answer; the first of a stream, or all if `whole`."""
    if not method.endswith("StreamGenerate"):
        unary = channel.unary_unary(method, request_serializer=_as_is, response_deserializer=_as_is)
        answer: bytes = unary(request, timeout=timeout)
        return answer
    streaming = channel.unary_stream(
        method, request_serializer=_as_is, response_deserializer=_as_is
    )
    answers = streaming(request, timeout=timeout)
    if whole:
        return b"".join(answers)
    first: bytes = next(answers)
    answers.cancel()
    return first


def _as_is(raw: bytes) -> bytes:
    return raw


def upload_header(name: str, package: bytes, **changes: Any) -> adapters_pb2.UploadAdapterRequest:
    """The first message of an upload of `package`, true unless `changes` say else."""
    fields: dict[str, Any] = {
        "name": name, "size_bytes": len(package), "sha256": hashlib.sha256(package).hexdigest()
    }  # fmt: skip
    return adapters_pb2.UploadAdapterRequest(header=adapters_pb2.UploadHeader(**fields | changes))


def chunks(package: bytes, size: int = 64 << 10) -> list[adapters_pb2.UploadAdapterRequest]:
    """The messages that follow the header."""
    return [
        adapters_pb2.UploadAdapterRequest(chunk=package[start : start + size])
        for start in range(0, len(package), size)
    ]
