"""Errors in OpenAI's form."""

import math
from collections.abc import Collection

import grpc
import msgspec
from starlette.responses import Response

from loramux.errors import InvalidArgumentError, LoramuxError
from loramux.gateway.caller import Caller
from loramux.gateway.names import MODEL_FIELDS, Names

_STATUSES: dict[grpc.StatusCode, tuple[int, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error"),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.ALREADY_EXISTS: (409, "invalid_request_error"),
    grpc.StatusCode.ABORTED: (409, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.CANCELLED: (499, "invalid_request_error"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "server_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error"),
}
"""gRPC status -> HTTP status, as google.rpc.Code maps them, and OpenAI's error type."""
_DEFECT = (500, "server_error")

_OWN_WORDS = {
    grpc.StatusCode.UNAVAILABLE: "the server cannot be reached; try again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the request timed out",
}
"""Replace the transport's messages, which would reveal the server's address."""

_AGAIN_SECONDS = 1.0
_NAMES = Names()


def unsupported(param: str, message: str) -> InvalidArgumentError:
    """Return the error for a field or value that is not supported."""
    return InvalidArgumentError(message, reason="UNSUPPORTED_PARAMETER", field=param)


def invalid(param: str, message: str) -> InvalidArgumentError:
    """Return the error for a field with an invalid value."""
    return InvalidArgumentError(message, reason="INVALID_FIELD", field=param)


def check_one_of(param: str, value: object, known: Collection[str]) -> None:
    """Check that a field's value is one of `known`.

    Raises:
        InvalidArgumentError: It is not.
    """
    if value not in known:
        expected = " or ".join(repr(each) for each in known)
        raise unsupported(param, f"{param} is {value!r}; expected {expected}")


def error_body(error: LoramuxError, names: Names = _NAMES) -> dict[str, object]:
    """Return OpenAI's body for `error`; `names` are the request's field names."""
    return {"error": error_object(error, names)}


def error_object(error: LoramuxError, names: Names = _NAMES) -> dict[str, str | None]:
    """Return the error object of that body: message, type, param and code."""
    _, kind = status_of(error)
    message, code = words_of(error), (error.reason or error.code.name).lower()
    if _is_of_model(error):
        code = "model_not_found"
    if error.reason == "UNKNOWN_PARAMETER":  # already has the caller's name
        return _object(message, kind, error.field, code)
    return _object(names.message(message, error.field), kind, names.param(error.field), code)


def refusal(error: LoramuxError, caller: Caller, names: Names = _NAMES) -> Response:
    """Return the response to `caller` for `error`; see `error_body` for `names`."""
    status, _ = status_of(error)
    return json_response(error_body(error, names), headers_of(error, status, caller), status)


def error_fields(error: LoramuxError) -> dict[str, object]:
    """Return the server's error object, with its own field names."""
    return {
        "status": error.code.name,
        "reason": error.reason,
        "field": error.field,
        "message": words_of(error),
    }


def own_refusal(error: LoramuxError, caller: Caller) -> Response:
    """Return the response to `caller` with the server's own error object."""
    status, _ = own_status_of(error)
    return json_response({"error": error_fields(error)}, headers_of(error, status, caller), status)


def plain_refusal(status: int, message: str, code: str, caller: Caller) -> Response:
    """Return the response for an HTTP-level error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": _object(message, kind, None, code)}
    return json_response(body, caller.returned, status)


def json_response(body: object, headers: dict[str, str], status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def words_of(error: LoramuxError) -> str:
    """Return the message of `error` for callers; errors of the transport have no reason."""
    return str(error) if error.reason else _OWN_WORDS.get(error.code, "internal server error")


def headers_of(error: LoramuxError, status: int, caller: Caller) -> dict[str, str]:
    """Return the headers of the response to `caller` for `error`, with the HTTP `status`."""
    headers = dict(caller.returned)
    delay = error.retry_delay
    if delay is None and not error.reason and error.code is grpc.StatusCode.UNAVAILABLE:
        delay = _AGAIN_SECONDS
    if delay is not None:
        headers["retry-after"] = str(max(1, math.ceil(delay)))
        headers["retry-after-ms"] = str(round(1000 * delay))  # which OpenAI's clients read first
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def status_of(error: LoramuxError) -> tuple[int, str]:
    """Return the HTTP status and OpenAI's error type for `error`."""
    return _STATUSES.get(grpc.StatusCode.NOT_FOUND if _is_of_model(error) else error.code, _DEFECT)


def own_status_of(error: LoramuxError) -> tuple[int, str]:
    """Return the same for routes where adapters are not called models."""
    return _STATUSES.get(error.code, _DEFECT)


def _is_of_model(error: LoramuxError) -> bool:
    """Return whether `error` means an unknown model, or a name that no model can have."""
    return error.reason == "ADAPTER_NOT_FOUND" or (
        error.code is grpc.StatusCode.INVALID_ARGUMENT
        and error.field in MODEL_FIELDS
        and error.reason != "UNKNOWN_PARAMETER"
    )


def _object(message: str, kind: str, param: str | None, code: str) -> dict[str, str | None]:
    return {"message": message, "type": kind, "param": param, "code": code}
