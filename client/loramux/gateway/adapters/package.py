"""A package uploaded as the body of a request."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import Request

from loramux._instrumented_channel import sticky_channel
from loramux.gateway.reading import BODY_SECONDS
from loramux.gateway.refusal import invalid
from loramux.gateway.uploading import Start, Uploading
from loramux.types import Adapter

DIGEST = "x-content-sha256"
_TYPE = "application/octet-stream"


async def upload(
    request: Request, channel: grpc.aio.Channel, seconds: float, start: Start
) -> tuple[Adapter, bool]:
    """Send the body of `request`; return the adapter, and whether it already existed.

    Each call of the server may take `seconds`. The server checks name, size and digest before a
    byte is read. If it has part of the package from an interrupted upload, only the rest is sent.

    Raises:
        LoramuxError: The server refuses it.
        HTTPException: The body arrives too slowly.
        ClientDisconnect: The caller disconnected before it was complete.
    """
    # All calls of an upload go to one server.
    uploading = Uploading(sticky_channel(channel, start.name), seconds)
    request.state.is_cut_off = True  # the body of a refused upload is not read
    started = await uploading.start(start)
    parts = request.stream()
    if started["adapter"] is None:
        upload_id, committed = str(started["upload_id"]), started["committed_bytes"]
        assert isinstance(committed, int)
        if committed < start.size_bytes:
            await uploading.send(upload_id, committed, _without(parts, committed))
        started = await uploading.finish(upload_id)
    await _drained(parts)
    request.state.is_cut_off = False
    adapter = started["adapter"]
    assert isinstance(adapter, Adapter)
    return adapter, bool(started["already_existed"])


def start_of(request: Request, name: str, *, must_not_exist: bool, ttl: float | None) -> Start:
    """Return the upload that the headers of `request` declare.

    Raises:
        HTTPException: There is no content length, or the content type is not octet-stream.
        InvalidArgumentError: There is no valid digest.
    """
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _TYPE:
        # A web page could send other types here without a CORS preflight, but not this one.
        raise HTTPException(415, f"content-type is {kind!r}; expected {_TYPE!r}")
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise HTTPException(
            411, "content-length is missing or invalid; expected the package's size in bytes"
        )
    digest = headers.get(DIGEST, "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise invalid(
            DIGEST, f"{DIGEST} is {digest[:80]!r}; expected the package's SHA-256, in hex"
        )
    return Start(
        name=name,
        size_bytes=int(length),
        sha256=digest,
        must_not_exist=must_not_exist,
        ttl_seconds=ttl,
    )


async def _without(parts: AsyncIterable[bytes], count: int) -> AsyncGenerator[bytes, None]:
    """Yield `parts` without the first `count` bytes."""
    async for part in parts:
        yield part[count:]
        count = max(0, count - len(part))


async def _drained(parts: AsyncIterable[bytes]) -> None:
    """Read the rest of the body: many clients read the response only after sending all of it."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for _ in parts:
                pass
    except TimeoutError:
        raise HTTPException(408) from None
