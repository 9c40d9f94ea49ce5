"""Reads JSON bodies within limits of size and time."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY_BYTES = 4 << 20
"""The server's limit for a message without images."""
BODY_SECONDS = 60.0
"""How long a body may take to arrive."""


async def _max_body_bytes() -> int:
    return MAX_BODY_BYTES


async def read(
    request: Request, most_bytes: Callable[[], Awaitable[int]] = _max_body_bytes
) -> bytes:
    """Return the body of `request`.

    Args:
        request: The request.
        most_bytes: Returns the size limit; called once the body exceeds MAX_BODY_BYTES.

    Raises:
        HTTPException: Its content type is not JSON, or it is compressed, too large or too slow.
        ClientDisconnect: The caller disconnected before it was complete.
        LoramuxError: Raised by `most_bytes`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A web page could send other types here without a CORS preflight, but not this one.
        raise HTTPException(415, f"content-type is {kind!r}; expected 'application/json'")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":  # the decompressed size would be unbounded
        raise HTTPException(415, f"content-encoding is {coding!r}; expected an uncompressed body")
    raw, most = bytearray(), MAX_BODY_BYTES
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                raw += part
                if len(raw) > most == MAX_BODY_BYTES:
                    request.state.is_cut_off = True
                    most = await most_bytes()
                    request.state.is_cut_off = False
                if len(raw) > most:
                    raise HTTPException(413, f"the body is larger than {most} bytes")
    except TimeoutError:
        raise HTTPException(408) from None
    return bytes(raw)
