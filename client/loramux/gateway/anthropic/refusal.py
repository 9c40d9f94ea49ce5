"""Errors in the form of Anthropic's API."""

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from loramux.errors import LoramuxError
from loramux.gateway.caller import Caller
from loramux.gateway.names import Names
from loramux.gateway.refusal import headers_of, json_response, status_of, words_of

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""HTTP status -> error type; `_kind` has the defaults."""
_OVERLOADED = 529
_OF_LOAD = frozenset({"QUEUE_FULL", "MEMORY_UNREACHABLE", "DEADLINE_UNREACHABLE", "SERVER_BUSY"})
"""Reasons that concern the whole server; others concern the caller's quota."""


def is_anthropic(scope: Scope) -> bool:
    """Return whether the request of `scope` is for Anthropic's API."""
    path: str = scope["path"]
    if path == "/v1/models" or path.startswith("/v1/models/"):  # in OpenAI's API, too
        return "anthropic-version" in Headers(scope=scope)
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_body(error: LoramuxError, request_id: str, names: Names) -> dict[str, object]:
    """Return Anthropic's object for `error`, with the field names of the request."""
    message = words_of(error)
    if error.reason != "UNKNOWN_PARAMETER":  # which already has the caller's name
        message = names.message(message, error.field)
    return _body(_status(error), message, request_id)


def refusal(error: LoramuxError, caller: Caller, names: Names) -> Response:
    """Return the response for `error`; `names` translates fields."""
    status = _status(error)
    headers = headers_of(error, status, caller) | request_header(caller)
    return json_response(error_body(error, caller.request_id, names), headers, status)


def plain_refusal(status: int, message: str, code: str, caller: Caller) -> Response:
    """Return the response for an HTTP-level error; Anthropic's API has no `code`."""
    body = _body(status, message, caller.request_id)
    return json_response(body, caller.returned | request_header(caller), status)


def request_header(caller: Caller) -> dict[str, str]:
    """Return the header from which Anthropic's clients read a request's id."""
    return {"request-id": caller.request_id}


def _status(error: LoramuxError) -> int:
    status, _ = status_of(error)
    return _OVERLOADED if status == 429 and error.reason in _OF_LOAD else status


def _kind(status: int) -> str:
    default = "api_error" if status >= 500 else "invalid_request_error"
    return _KINDS.get(status, default)


def _body(status: int, message: str, request_id: str) -> dict[str, object]:
    error = {"type": _kind(status), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}
