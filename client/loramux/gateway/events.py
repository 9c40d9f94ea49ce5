"""Server-sent events."""

import msgspec

EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # otherwise nginx would buffer them
}
"""Headers of a stream."""


def event(data: object, name: str = "") -> bytes:
    """Return an event with `data` as JSON; without an `event:` line if `name` is empty."""
    head = b"event: %b\n" % name.encode() if name else b""
    return head + b"data: %b\n\n" % msgspec.json.encode(data)
