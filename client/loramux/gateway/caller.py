"""What an HTTP request tells of who makes it, and takes along to the server."""

import secrets
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.types import Scope

from loramux._routing.routed import Metadata

_KEY = "loramux.caller"
_TOGETHER = "x-requests-together"
"""Metadata that tells of how many calls one is: a quota may never grant so many at once."""
_MAX_VALUE = 1024
_MAX_REQUEST_ID = 128
"""Characters of an id that the server takes."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, in gRPC's terms."""

    request_id: str
    """The caller's own, or one that was made here."""
    key: str
    """What shows who it is; empty for nothing."""
    metadata: Metadata
    """What goes along with every call made for it, the id included."""
    returned: dict[str, str]
    """Headers that every answer to it has."""

    def making(self, count: int) -> "Caller":
        """Return the same, whose request is cut into `count` calls."""
        if count == 1:
            return self
        return replace(self, metadata=(*self.metadata, (_TOGETHER, str(count))))


def caller_of(scope: Scope) -> Caller:
    """Return who makes the request of `scope`; the same each time."""
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
    # As Anthropic's clients show a key.
    if "authorization" not in headers and (key := _value(headers, "x-api-key")):
        passed["authorization"] = f"Bearer {key}"
    if len(passed.get("x-request-id", "")) not in range(1, _MAX_REQUEST_ID + 1):
        passed["x-request-id"] = secrets.token_hex(12)
    returned = {name: passed[name] for name in passed.keys() & {"x-request-id", "traceparent"}}
    return Caller(
        passed["x-request-id"], passed.get("authorization", ""), tuple(passed.items()), returned
    )


def _value(headers: Headers, name: str) -> str:
    """Return the header `name`; what gRPC could not carry is left out, as a key if there were none.

    Of several none is chosen.
    """
    values = headers.getlist(name)
    value = values[0] if len(values) == 1 else ""
    return value if len(value) <= _MAX_VALUE and value.isascii() and value.isprintable() else ""
