"""Exception handlers: the responses for what a route raises."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from loramux.errors import LoramuxError
from loramux.gateway import anthropic
from loramux.gateway.caller import caller_of
from loramux.gateway.names import Names
from loramux.gateway.reading import BODY_SECONDS
from loramux.gateway.refusal import plain_refusal, refusal

_log = logging.getLogger(__name__)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoramuxError)
    refuse = anthropic.refusal if anthropic.is_anthropic(request.scope) else refusal
    refuse = getattr(request.state, "refuse", refuse)
    answer = refuse(error, caller_of(request.scope), getattr(request.state, "names", Names()))
    if getattr(request.state, "is_cut_off", False):  # the rest of the body is not read
        answer.headers["connection"] = "close"
    return answer


_HTTP = {
    404: ("no such route", "not_found"),
    405: ("the route does not support this method", "method_not_allowed"),
    408: (f"the body took more than {BODY_SECONDS:g} s", "body_timeout"),
    411: ("", "length_required"),
    413: ("", "body_too_large"),
    415: ("", "unsupported_media_type"),
}
"""Status -> message, empty to use the exception's, and code."""
_CLOSING = (408, 411, 413, 415)
"""Statuses after which the connection is closed, without reading the rest of the body."""


async def _wrong_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = _HTTP.get(error.status_code, ("", "malformed_request"))
    answer = _plain(request, error.status_code, message or error.detail, code)
    answer.headers.update(error.headers or {})
    if error.status_code in _CLOSING:
        answer.headers["connection"] = "close"
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    """Return a response for a caller who has disconnected."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    """Answer after a bug; Starlette raises the error again, so uvicorn logs the traceback."""
    caller = caller_of(request.scope)
    _log.error("request %s failed", caller.request_id)
    message = f"internal error, request {caller.request_id}"
    return _plain(request, 500, message, "internal")


def _plain(request: Request, status: int, message: str, code: str) -> Response:
    """Return an HTTP-level error in the form of the API that was called."""
    of_anthropic = anthropic.is_anthropic(request.scope)
    refuse = anthropic.plain_refusal if of_anthropic else plain_refusal
    return refuse(status, message, code, caller_of(request.scope))


HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    LoramuxError: _refused,
    HTTPException: _wrong_http,
    ClientDisconnect: _gone,
    Exception: _failed,
}
"""Exception class -> handler."""
