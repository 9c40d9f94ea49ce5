"""Bodies that are JSON: how large they may be, and how long they may take."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY_BYTES = 4 << 20
"""What the server takes as a message."""
BODY_SECONDS = 60.0
"""How long a body may take to come."""


async def read(request: Request) -> bytes:
    """Return the body of `request`.

    Raises:
        HTTPException: It is not called JSON, is too large, or takes too long.
        ClientDisconnect: The caller went away before it was whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Any page may let a browser send other types here; to send this one, it would have to ask.
        raise HTTPException(415, f"content-type is {kind!r}; expected 'application/json'")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                raw += part
                if len(raw) > MAX_BODY_BYTES:
                    raise HTTPException(413)
    except TimeoutError:
        raise HTTPException(408) from None
    return bytes(raw)
