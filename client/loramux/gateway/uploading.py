"""Packages uploaded over HTTP, forwarded to a server chunk by chunk as they arrive.

Size and digest are known before anything is sent, so the server checks the name and the caller
first, and an interrupted upload can be resumed.
"""

import asyncio
import datetime
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing

import grpc
import msgspec
from starlette.exceptions import HTTPException

from loramux import _adapter_wire, _wire
from loramux._fitting import fitting
from loramux._upload import CHUNK_BYTES
from loramux.gateway.reading import BODY_SECONDS
from loramux.gateway.refusal import invalid
from loramux.v1 import adapters_pb2, uploads_pb2
from loramux.v1.uploads_pb2_grpc import UploadServiceStub

_MAX_TTL = 100 * 365 * 86_400


class Start(msgspec.Struct, kw_only=True):
    """The package that will be sent."""

    name: str
    size_bytes: int
    sha256: str
    must_not_exist: bool = False
    ttl_seconds: float | None = None


def ttl_of(field: str, seconds: float) -> datetime.timedelta:
    """Return the time to live that `field` gives in seconds.

    Raises:
        InvalidArgumentError: It is out of range.
    """
    # Written so that NaN fails. Much larger values would overflow a timestamp.
    if not 0 < seconds <= _MAX_TTL:
        raise invalid(
            field, f"{field} is {seconds}; expected seconds above 0 and at most {_MAX_TTL}"
        )
    return datetime.timedelta(seconds=seconds)


class Uploading:
    """The calls of one upload, at one server.

    Each raises a `loramux.errors.LoramuxError` when it fails.
    """

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        """Initialize with a `channel` and the `timeout` of each call, in seconds."""
        self._service = UploadServiceStub(channel)
        self._timeout = timeout

    async def start(self, start: Start) -> dict[str, object]:
        """Start or resume the upload; return what the server has of it: some bytes, or all."""
        with fitting("size_bytes"):
            header = adapters_pb2.UploadHeader(
                name=start.name,
                size_bytes=start.size_bytes,
                sha256=start.sha256,
                must_not_exist=start.must_not_exist,
            )
        if start.ttl_seconds is not None:
            header.ttl.FromTimedelta(ttl_of("ttl_seconds", start.ttl_seconds))
        with _wire.raising():
            response = await self._service.StartUpload(
                uploads_pb2.StartUploadRequest(header=header), timeout=self._timeout
            )
        is_there = response.HasField("adapter")
        return {
            "upload_id": response.upload_id,
            "committed_bytes": response.committed_bytes,
            "adapter": _adapter_wire.adapter(response.adapter) if is_there else None,
            "already_existed": response.already_existed,
        }

    async def send(
        self, upload_id: str, offset: int, parts: AsyncIterable[bytes]
    ) -> dict[str, object]:
        """Send `parts`, which begin at byte `offset`; return how many bytes the server has.

        Raises:
            HTTPException: They arrive too slowly.
            InvalidArgumentError: They are empty.
        """
        committed: int | None = None
        async with aclosing(_regrouped(parts)) as chunks:
            while (chunk := await _next(chunks)) is not None:
                request = uploads_pb2.SendChunksRequest(
                    upload_id=upload_id, offset=offset, chunk=chunk
                )
                # One call per chunk: an error during a longer stream may get lost while it writes.
                with _wire.raising():
                    response = await self._service.SendChunks(
                        iter([request]), timeout=self._timeout
                    )
                offset, committed = offset + len(chunk), response.committed_bytes
        if committed is None:
            raise invalid("chunk", "the body is empty; expected the next chunk of the package")
        return {"committed_bytes": committed}

    async def finish(self, upload_id: str) -> dict[str, object]:
        """Finish the upload; return the registered adapter."""
        with _wire.raising():
            response = await self._service.FinishUpload(
                uploads_pb2.FinishUploadRequest(upload_id=upload_id), timeout=self._timeout
            )
        return {
            "adapter": _adapter_wire.adapter(response.adapter),
            "already_existed": response.already_existed,
        }


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    """Return the next chunk, or None after the last."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await anext(chunks, None)
    except TimeoutError:
        raise HTTPException(408) from None


async def _regrouped(parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the same bytes in chunks of CHUNK_BYTES; the last may be smaller."""
    held = bytearray()
    async for part in parts:
        held += part
        while len(held) >= CHUNK_BYTES:
            yield bytes(held[:CHUNK_BYTES])
            del held[:CHUNK_BYTES]
    if held:
        yield bytes(held)
