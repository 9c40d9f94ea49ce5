"""Bodies that are JSON: how large they may be, and how long they may take."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY_BYTES = 4 << 20
"""What a server takes as a message without images."""
BODY_SECONDS = 60.0
"""How long a body may take to come."""


async def _no_more() -> int:
    return MAX_BODY_BYTES


async def read(request: Request, most_bytes: Callable[[], Awaitable[int]] = _no_more) -> bytes:
    """Return the body of `request`.

    Args:
        request: The request.
        most_bytes: Says how large it may be, where it is larger than MAX_BODY_BYTES.

    Raises:
        HTTPException: It is not called JSON, is compressed, is too large, or takes too long.
        ClientDisconnect: The caller went away before it was whole.
        LoramuxError: What `most_bytes` raises.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Any page may let a browser send other types here; to send this one, it would have to ask.
        raise HTTPException(415, f"content-type is {kind!r}; expected 'application/json'")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":  # an inflated body has no bound
        raise HTTPException(415, f"content-encoding is {coding!r}; send the body as it is")
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
