"""AdapterService: uploads, imports, downloads, lists and deletion of adapters."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import BinaryIO

from loramux.errors import DataLossError
from loramux.v1 import adapters_pb2
from loramux_server.access.caller import caller
from loramux_server.field_errors import invalid
from loramux_server.metrics.series import Metrics
from loramux_server.services.adapters.changes import Changes
from loramux_server.services.adapters.chunks import (
    MIN_BYTES,
    Chunks,
    Incoming,
    protocol_error,
    small_chunk,
)
from loramux_server.services.adapters.descriptions import Descriptions, alias_of
from loramux_server.services.adapters.expiry import end_of, ttl_of
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.pages import page_size
from loramux_server.services.adapters.selection import Selection
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.services.observer import counting_failed_uploads
from loramux_server.statuses import Statuses
from loramux_server.store.blobs import Staged
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import parse_name
from loramux_server.tasks import finished
from loramux_server.transport.rpc import Context

MAX_EMPTY_CHUNKS = 16
DOWNLOAD_BYTES = 512 << 10


class AdapterService:
    """Implements `loramux.v1.AdapterService`."""

    descriptor = adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"]

    def __init__(
        self,
        *,
        intake: Intake,
        imports: Imports,
        descriptions: Descriptions,
        statuses: Statuses,
        metrics: Metrics,
        chunks: Chunks,
        changes: Changes,
    ) -> None:
        self._intake = intake
        self._imports = imports
        self._registry = intake.registry
        self._selection = Selection(intake.registry, descriptions)
        self._descriptions = descriptions
        self._statuses = statuses
        self._metrics = metrics
        self._chunks = chunks
        self._changes = changes

    async def UploadAdapter(
        self, requests: AsyncIterator[adapters_pb2.UploadAdapterRequest], context: Context
    ) -> adapters_pb2.UploadAdapterResponse:
        """Receive, check, store, try out and register a package."""
        with counting_failed_uploads(self._metrics), storage_errors():
            response = await self._upload(requests)
        self._metrics.uploads.labels("ok").inc()
        return response

    async def ImportAdapter(
        self, request: adapters_pb2.ImportAdapterRequest, context: Context
    ) -> adapters_pb2.ImportAdapterResponse:
        """Fetch a package, and handle it like an upload."""
        with counting_failed_uploads(self._metrics), storage_errors():
            record, is_new = await self._imports.take(request)
        self._metrics.uploads.labels("ok").inc()
        return adapters_pb2.ImportAdapterResponse(
            adapter=self._descriptions.of(record), already_existed=not is_new
        )

    async def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, context: Context
    ) -> adapters_pb2.GetAdapterResponse:
        """Describe one adapter."""
        record = self._registry.get(request.name)
        aliases = self._registry.aliases.of(record.adapter)
        return adapters_pb2.GetAdapterResponse(
            adapter=self._descriptions.of(record),
            aliases=[alias_of(alias, split) for alias, split in sorted(aliases.items())],
        )

    async def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, context: Context
    ) -> adapters_pb2.ListAdaptersResponse:
        """List a page of adapters; the page token names the last one of the previous page."""
        size = page_size(request.page_size)
        found: list[AdapterRecord] = []
        for record in self._selection.after(request):
            found.append(record)
            if len(found) > size:
                break
        last = found[size - 1] if len(found) > size else None
        return adapters_pb2.ListAdaptersResponse(
            adapters=[self._descriptions.of(record) for record in found[:size]],
            next_page_token=(str(last) if request.all_versions else last.full_name) if last else "",
        )

    async def DeleteAdapter(
        self, request: adapters_pb2.DeleteAdapterRequest, context: Context
    ) -> adapters_pb2.DeleteAdapterResponse:
        """Delete an adapter or a version."""
        with storage_errors():
            gone = await finished(asyncio.to_thread(self._registry.delete, request.name))
        if request.wait:
            await asyncio.gather(*map(self._is_free, gone))
        return adapters_pb2.DeleteAdapterResponse()

    async def SetAdapterTtl(
        self, request: adapters_pb2.SetAdapterTtlRequest, context: Context
    ) -> adapters_pb2.SetAdapterTtlResponse:
        """Set how long a version stays, from now on."""
        self._registry.check_writable(self._registry.get(request.name).full_name, "name")
        ends = end_of(ttl_of(request.ttl, "ttl") if request.HasField("ttl") else None)
        with storage_errors():
            changing = asyncio.to_thread(
                self._registry.change, request.name, lambda found: replace(found, expires_at=ends)
            )
            record = await finished(changing)
        return adapters_pb2.SetAdapterTtlResponse(adapter=self._descriptions.of(record))

    async def DownloadAdapter(
        self, request: adapters_pb2.DownloadAdapterRequest, context: Context
    ) -> AsyncIterator[adapters_pb2.DownloadAdapterResponse]:
        """Send a package; a lease keeps its bytes until the call ends, even if it is deleted."""
        with self._registry.lease(request.name, field="name") as (record, _):
            if not 0 <= request.offset <= record.size_bytes:
                raise invalid("offset", request.offset, f"0 to {record.size_bytes}")
            yield adapters_pb2.DownloadAdapterResponse(adapter=self._descriptions.of(record))
            with storage_errors(), self._open(record) as file:
                file.seek(request.offset)
                while chunk := await asyncio.to_thread(file.read, DOWNLOAD_BYTES):
                    yield adapters_pb2.DownloadAdapterResponse(chunk=chunk)

    async def WatchAdapters(
        self, request: adapters_pb2.WatchAdaptersRequest, context: Context
    ) -> AsyncIterator[adapters_pb2.WatchAdaptersResponse]:
        """Stream changes; existing adapters come first if asked for."""
        named = parse_name(request.name, "name") if request.name else None
        who = caller()

        def wants(record: AdapterRecord) -> bool:
            is_named = named is None or record.adapter == (named.tenant, named.name)
            return is_named and who.sees(record.tenant)

        watcher = self._changes.watch(wants)
        try:
            if request.include_existing:
                for record in self._registry.records(all_versions=True):
                    if wants(record):
                        yield adapters_pb2.WatchAdaptersResponse(
                            change=adapters_pb2.ADAPTER_CHANGE_EXISTING,
                            adapter=self._descriptions.of(record),
                        )
            async for change in watcher.changes():
                yield change
        finally:
            self._changes.leave(watcher)

    def _open(self, record: AdapterRecord) -> BinaryIO:
        """Open the bytes of a leased version.

        Raises:
            DataLossError: They are missing.
        """
        try:
            return self._registry.blobs.open(record.digest)
        except FileNotFoundError:
            raise DataLossError(
                f"the package of {str(record)!r} is missing from the store",
                reason="ADAPTER_DAMAGED",
                field="name",
            ) from None

    async def _is_free(self, record: AdapterRecord) -> None:
        """Wait until no call uses a version, and its memory is released unless shared."""
        loop = asyncio.get_running_loop()
        idle = asyncio.Event()
        self._registry.leases.when_idle(record, lambda: loop.call_soon_threadsafe(idle.set))
        await idle.wait()
        await self._statuses.has_left(record.digest)

    async def _upload(
        self, requests: AsyncIterator[adapters_pb2.UploadAdapterRequest]
    ) -> adapters_pb2.UploadAdapterResponse:
        incoming = self._chunks.of(requests)
        first = await incoming.next()
        if first is None or first.WhichOneof("message") != "header":
            raise protocol_error("the first message of an upload must be its header", "header")
        header = first.header
        self._intake.check_header(header)
        with self._intake.reserved(header):
            staged = self._registry.stage()
            try:
                await self._receive(incoming, staged, header)
                record, is_new = await self._intake.take_upload(staged, header)
            finally:
                await finished(asyncio.to_thread(self._registry.discard, staged))
        return adapters_pb2.UploadAdapterResponse(
            adapter=self._descriptions.of(record), already_existed=not is_new
        )

    async def _receive(
        self,
        incoming: Incoming[adapters_pb2.UploadAdapterRequest],
        staged: Staged,
        header: adapters_pb2.UploadHeader,
    ) -> None:
        """Write the chunks that follow the header, and check them against it."""
        num_empty = 0
        was_small = False
        while (request := await incoming.next()) is not None:
            if request.WhichOneof("message") == "header":
                raise protocol_error("the header was sent twice", "header")
            chunk = request.chunk
            num_empty += not chunk
            if num_empty > MAX_EMPTY_CHUNKS:
                raise protocol_error(f"more than {MAX_EMPTY_CHUNKS} empty chunks", "chunk")
            # Only the next chunk shows whether a small one was the last.
            self._chunks.check_size(chunk, is_last=True)
            if chunk and was_small:
                raise small_chunk()
            was_small = was_small or 0 < len(chunk) < MIN_BYTES
            if staged.size + len(chunk) > header.size_bytes:
                raise protocol_error(
                    f"more bytes were received than header.size_bytes, {header.size_bytes}",
                    "header.size_bytes",
                )
            await finished(asyncio.to_thread(staged.write, chunk))
        if staged.size != header.size_bytes:
            raise protocol_error(
                f"{staged.size} bytes were received; header.size_bytes is {header.size_bytes}",
                "header.size_bytes",
            )
