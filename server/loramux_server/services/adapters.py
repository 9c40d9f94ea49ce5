"""AdapterService: uploads, and what is registered."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from loramux.v1 import adapters_pb2
from loramux_server.metrics import Metrics
from loramux_server.rpc import Context
from loramux_server.services.chunks import MIN_BYTES, Chunks, protocol_error, small_chunk
from loramux_server.services.descriptions import Descriptions, alias_of
from loramux_server.services.intake import Intake
from loramux_server.services.limits import page_size
from loramux_server.services.observer import outcome_of
from loramux_server.services.storage import finished, storage_errors
from loramux_server.store.blobs import Staged
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import parse_reference

MAX_EMPTY_CHUNKS = 16


class AdapterService:
    """Implements `loramux.v1.AdapterService`."""

    def __init__(
        self,
        *,
        intake: Intake,
        descriptions: Descriptions,
        metrics: Metrics,
        chunks: Chunks,
    ) -> None:
        self._intake = intake
        self._registry = intake.registry
        self._descriptions = descriptions
        self._metrics = metrics
        self._chunks = chunks

    async def UploadAdapter(
        self, requests: AsyncIterator[adapters_pb2.UploadAdapterRequest], context: Context
    ) -> adapters_pb2.UploadAdapterResponse:
        """Receive, check, store, try out and register a package."""
        try:
            with storage_errors():
                response = await self._upload(requests)
        except BaseException as error:
            self._metrics.uploads.labels(outcome_of(error)).inc()
            raise
        self._metrics.uploads.labels("ok").inc()
        return response

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
        """Describe a page of adapters; the page token refers to the last one of the page before."""
        size = page_size(request.page_size)
        found: list[AdapterRecord] = []
        for record in self._after(request.page_token, request.all_versions):
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
        """Take an adapter or a version away."""
        with storage_errors():
            await finished(self._delete(request.name))
        return adapters_pb2.DeleteAdapterResponse()

    async def _delete(self, reference: str) -> None:
        gone = await asyncio.to_thread(self._registry.delete, reference)
        if not self._registry.versions(gone[0].full_name):
            self._metrics.labels.forget(gone[0].full_name)

    def _after(self, page_token: str, all_versions: bool) -> Iterator[AdapterRecord]:
        """Yield what comes behind the last one of a page."""
        if not page_token:
            yield from self._registry.records(all_versions=all_versions)
            return
        last = parse_reference(page_token, "page_token")
        adapter = (last.tenant, last.name)
        for record in self._registry.records(begin=adapter, all_versions=all_versions):
            # The versions of one adapter come newest first.
            if record.adapter != adapter or (last.version and record.version < last.version):
                yield record

    async def _upload(
        self, requests: AsyncIterator[adapters_pb2.UploadAdapterRequest]
    ) -> adapters_pb2.UploadAdapterResponse:
        first = await self._chunks.next(requests)
        if first is None or first.WhichOneof("message") != "header":
            raise protocol_error("the first message of an upload is its header", "header")
        header = first.header
        self._intake.check_header(header)
        staged = self._registry.stage()
        try:
            await self._receive(requests, staged, header)
            record, is_new = await self._intake.take(staged, header)
        finally:
            await finished(asyncio.to_thread(self._registry.discard, staged))
        return adapters_pb2.UploadAdapterResponse(
            adapter=self._descriptions.of(record), already_existed=not is_new
        )

    async def _receive(
        self,
        requests: AsyncIterator[adapters_pb2.UploadAdapterRequest],
        staged: Staged,
        header: adapters_pb2.UploadHeader,
    ) -> None:
        """Write the chunks that follow the header, which have to be what it declares."""
        num_empty = 0
        was_small = False
        while (request := await self._chunks.next(requests)) is not None:
            if request.WhichOneof("message") == "header":
                raise protocol_error("a header came twice", "header")
            chunk = request.chunk
            num_empty += not chunk
            if num_empty > MAX_EMPTY_CHUNKS:
                raise protocol_error(f"more than {MAX_EMPTY_CHUNKS} empty chunks", "chunk")
            # Whether a small one is the last shows with the next.
            self._chunks.check_size(chunk, is_last=True)
            if chunk and was_small:
                raise small_chunk()
            was_small = was_small or 0 < len(chunk) < MIN_BYTES
            if staged.size + len(chunk) > header.size_bytes:
                raise protocol_error(
                    f"more bytes came than header.size_bytes, {header.size_bytes}",
                    "header.size_bytes",
                )
            await finished(asyncio.to_thread(staged.write, chunk))
        if staged.size != header.size_bytes:
            raise protocol_error(
                f"{staged.size} bytes came; header.size_bytes is {header.size_bytes}",
                "header.size_bytes",
            )
