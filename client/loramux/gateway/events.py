"""Server-sent events."""

import msgspec

EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # or nginx would gather them
}
"""Headers of a stream."""


def event(told: object, name: str = "") -> bytes:
    """Return the event that tells `told`, as JSON; one without a name has none."""
    head = b"event: %b\n" % name.encode() if name else b""
    return head + b"data: %b\n\n" % msgspec.json.encode(told)
