"""The caller of an HTTP request: its key, and the headers forwarded to the server as metadata."""

import secrets
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.types import Scope

from loramux._routing.routed import Metadata

_KEY = "loramux.caller"
_NUM_CALLS_KEY = "x-requests-together"
"""Metadata with the number of calls made together, since a quota may never allow that many."""
_MAX_VALUE = 1024
_MAX_REQUEST_ID = 128
"""Longest request id that the server accepts, in characters."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request, in gRPC's terms."""

    request_id: str
    """The caller's own, or a generated one."""
    key: str
    """Value of the `authorization` header; empty for none."""
    metadata: Metadata
    """Sent with every call made for the caller; includes the id."""
    returned: dict[str, str]
    """Headers of every response."""

    def with_num_calls(self, count: int) -> "Caller":
        """Return this caller for a request that is split into `count` calls."""
        if count == 1:
            return self
        return replace(self, metadata=(*self.metadata, (_NUM_CALLS_KEY, str(count))))


def caller_of(scope: Scope) -> Caller:
    """Return the caller of the request of `scope`, cached there."""
    if _KEY not in scope:
        scope[_KEY] = _read(Headers(scope=scope))
    found: Caller = scope[_KEY]
    return found


def _read(headers: Headers) -> Caller:
    passed = {
        name: value
        for name in ("authorization", "x-request-id", "traceparent", "tracestate")
        if (value := _value(headers, name))
    }
    # Anthropic's clients send the key so.
    if "authorization" not in headers and (key := _value(headers, "x-api-key")):
        passed["authorization"] = f"Bearer {key}"
    if len(passed.get("x-request-id", "")) not in range(1, _MAX_REQUEST_ID + 1):
        passed["x-request-id"] = secrets.token_hex(12)
    returned = {name: passed[name] for name in passed.keys() & {"x-request-id", "traceparent"}}
    return Caller(
        passed["x-request-id"], passed.get("authorization", ""), tuple(passed.items()), returned
    )


def _value(headers: Headers, name: str) -> str:
    """Return the header `name`; empty if it is missing, repeated, too long, or not printable ASCII.

    gRPC metadata could not carry the latter; a request with such a key has none.
    """
    values = headers.getlist(name)
    value = values[0] if len(values) == 1 else ""
    return value if len(value) <= _MAX_VALUE and value.isascii() and value.isprintable() else ""
