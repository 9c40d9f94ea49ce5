"""Methods of the asynchronous client for adapters: those of the blocking one, with `await`."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux._aio_aliases import AsyncAliases
from loramux._download import open_download
from loramux._instrumented_channel import sticky_channel
from loramux._upload import Progress, Upload, open_upload
from loramux.errors import LoramuxError
from loramux.types import Adapter, AdapterChange
from loramux.v1 import adapters_pb2, residency_pb2, uploads_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.residency_pb2_grpc import ResidencyServiceStub
from loramux.v1.uploads_pb2_grpc import UploadServiceStub

if TYPE_CHECKING:
    from loramux.v1.uploads_pb2_grpc import UploadServiceAsyncStub


class AsyncAdapters(AsyncAliases):
    """The adapters registered with a server.

    They are addressed by references, `[tenant/]name[:tag][@sha256:digest]`: the tag is a version or
    an alias; without one the newest version is meant.
    """

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        super().__init__(channel, timeout)
        self._service = AdapterServiceStub(channel)
        self._channel = channel
        self._residency = ResidencyServiceStub(channel)

    async def upload(
        self,
        name: str,
        path: str | Path,
        *,
        must_not_exist: bool = False,
        ttl: datetime.timedelta | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
    ) -> Adapter:
        """Upload the PEFT folder or package at `path` under `name`; see `Adapters.upload`."""
        seconds = self._timeout if timeout is None else timeout
        opening = open_upload(
            name,
            path,
            must_not_exist=must_not_exist,
            ttl=ttl,
            progress=progress,
            timeout=seconds,
        )
        with contextlib.ExitStack() as exit:
            # Packing and hashing gigabytes takes seconds.
            upload = await asyncio.to_thread(exit.enter_context, opening)
            uploads = UploadServiceStub(sticky_channel(self._channel, name))
            while True:
                try:
                    with _wire.raising():
                        return await self._attempt(uploads, upload)
                except LoramuxError as error:
                    await asyncio.sleep(upload.delay(error))

    async def import_from(
        self,
        name: str,
        uri: str,
        *,
        must_not_exist: bool = False,
        ttl: datetime.timedelta | None = None,
    ) -> Adapter:
        """Let the server fetch and register an adapter; see `Adapters.import_from`."""
        request = wire.import_request(name, uri, must_not_exist=must_not_exist, ttl=ttl)
        with _wire.raising():
            response = await self._service.ImportAdapter(request, timeout=self._timeout)
            return wire.adapter(response.adapter)

    async def get(self, reference: str) -> Adapter:
        """Return the version `reference` resolves to; of several, that of the largest weight."""
        with _wire.raising():
            response = await self._service.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def delete(self, reference: str, *, wait: bool = False) -> None:
        """Delete an adapter, or one version if `reference` names one.

        Requests that use it already finish with it. See `Adapters.delete`.
        """
        with _wire.raising():
            await self._service.DeleteAdapter(
                adapters_pb2.DeleteAdapterRequest(name=reference, wait=wait), timeout=self._timeout
            )

    async def set_ttl(self, reference: str, ttl: datetime.timedelta | None) -> Adapter:
        """Set the time to live of a version, counted from now; see `Adapters.set_ttl`."""
        with _wire.raising():
            response = await self._service.SetAdapterTtl(
                wire.ttl_request(reference, ttl), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def download(
        self, reference: str, path: str | Path, *, progress: Progress | None = None
    ) -> Adapter:
        """Download the package of a version to `path`, whole or not at all; return the version."""
        request = adapters_pb2.DownloadAdapterRequest(name=reference)
        with open_download(path, progress) as download, _wire.raising():
            async for response in self._service.DownloadAdapter(request, timeout=self._timeout):
                download.take(response)
            return download.finish()

    async def pin(self, reference: str) -> Adapter:
        """Pin a version to the device, also after a restart; return when it is loaded."""
        with _wire.raising():
            response = await self._residency.PinAdapter(
                residency_pb2.PinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def unpin(self, reference: str) -> Adapter:
        """Unpin a version, so that it may be evicted again."""
        with _wire.raising():
            response = await self._residency.UnpinAdapter(
                residency_pb2.UnpinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def prefetch(self, reference: str) -> Adapter:
        """Load a version to the device; return when it is loaded."""
        with _wire.raising():
            response = await self._residency.PrefetchAdapter(
                residency_pb2.PrefetchAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def watch(
        self,
        name: str = "",
        *,
        include_existing: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
    ) -> AsyncIterator[AdapterChange]:
        """Yield changes of one adapter, or of all, as they happen; closing the iterator ends it.

        With `include_existing`, the registered adapters come first, so that no change is missed.
        """
        request = adapters_pb2.WatchAdaptersRequest(name=name, include_existing=include_existing)
        call = self._service.WatchAdapters(request, timeout=timeout)
        try:
            with _wire.raising():
                async for response in call:
                    yield wire.change(response)
        finally:
            call.cancel()

    async def _attempt(self, uploads: "UploadServiceAsyncStub", upload: Upload) -> Adapter:
        """Send the missing bytes and finish the upload."""
        started = await uploads.StartUpload(upload.start_request(), timeout=upload.remaining)
        is_missing = upload.started(started)
        if started.HasField("adapter"):
            return wire.adapter(started.adapter)
        if is_missing:
            chunks = upload.chunks(started.upload_id)
            await uploads.SendChunks(chunks, timeout=upload.remaining)
        finished = await uploads.FinishUpload(
            uploads_pb2.FinishUploadRequest(upload_id=started.upload_id), timeout=upload.remaining
        )
        return wire.adapter(finished.adapter)

    async def list(
        self,
        *,
        all_versions: bool = False,
        tenant: str = "",
        name_prefix: str = "",
        source: str = "",
        tier: str = "",
    ) -> list[Adapter]:
        """Return adapters in the order of their names; see `Adapters.list`."""
        found: list[Adapter] = []
        token = ""
        with _wire.raising():
            while True:
                request = wire.list_request(
                    token,
                    all_versions=all_versions,
                    tenant=tenant,
                    name_prefix=name_prefix,
                    source=source,
                    tier=tier,
                )
                response = await self._service.ListAdapters(request, timeout=self._timeout)
                found += map(wire.adapter, response.adapters)
                token = response.next_page_token
                if not token:
                    return found
