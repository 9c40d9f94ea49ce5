"""What the asynchronous client does with adapters: the names of the blocking one, with `await`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux._download import open_download
from loramux._upload import Progress, Upload, open_upload
from loramux.errors import LoramuxError
from loramux.types import Adapter, AdapterChange, AliasMove
from loramux.v1 import adapters_pb2, aliases_pb2, residency_pb2, uploads_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.aliases_pb2_grpc import AliasServiceStub
from loramux.v1.residency_pb2_grpc import ResidencyServiceStub
from loramux.v1.uploads_pb2_grpc import UploadServiceStub


class AsyncAdapters:
    """The adapters that are registered with a server.

    They are named by references, `[tenant/]name[:tag][@sha256:digest]`: the tag is a version or an
    alias, and without one the newest version is meant.
    """

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._service = AdapterServiceStub(channel)
        self._aliases = AliasServiceStub(channel)
        self._uploads = UploadServiceStub(channel)
        self._residency = ResidencyServiceStub(channel)
        self._timeout = timeout

    async def upload(
        self,
        name: str,
        path: str | Path,
        *,
        must_not_exist: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
    ) -> Adapter:
        """Register the PEFT folder or package at `path` under `name`; see `Adapters.upload`."""
        seconds = self._timeout if timeout is None else timeout
        opening = open_upload(
            name, path, must_not_exist=must_not_exist, progress=progress, timeout=seconds
        )
        with contextlib.ExitStack() as exit:
            # Packing and hashing gigabytes takes seconds.
            upload = await asyncio.to_thread(exit.enter_context, opening)
            while True:
                try:
                    with _wire.raising():
                        return await self._attempt(upload)
                except LoramuxError as error:
                    await asyncio.sleep(upload.delay(error))

    async def get(self, reference: str) -> Adapter:
        """Return the version that `reference` stands for; of several, the one of most weight."""
        with _wire.raising():
            response = await self._service.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def delete(self, reference: str, *, wait: bool = False) -> None:
        """Take an adapter away, or one version if `reference` says which.

        See `Adapters.delete`.
        """
        with _wire.raising():
            await self._service.DeleteAdapter(
                adapters_pb2.DeleteAdapterRequest(name=reference, wait=wait), timeout=self._timeout
            )

    async def download(
        self, reference: str, path: str | Path, *, progress: Progress | None = None
    ) -> Adapter:
        """Write the package of a version to the file `path`, whole or not at all, and return it."""
        request = adapters_pb2.DownloadAdapterRequest(name=reference)
        with open_download(path, progress) as download, _wire.raising():
            async for response in self._service.DownloadAdapter(request, timeout=self._timeout):
                download.take(response)
            return download.finish()

    async def pin(self, reference: str) -> Adapter:
        """Keep a version on the device, also after a restart; return when it is there."""
        with _wire.raising():
            response = await self._residency.PinAdapter(
                residency_pb2.PinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def unpin(self, reference: str) -> Adapter:
        """Let a version go again when others need its room."""
        with _wire.raising():
            response = await self._residency.UnpinAdapter(
                residency_pb2.UnpinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    async def prefetch(self, reference: str) -> Adapter:
        """Bring a version to the device; return when it is there."""
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

        With `include_existing`, what is registered comes first, so that nothing is missed between.
        """
        request = adapters_pb2.WatchAdaptersRequest(name=name, include_existing=include_existing)
        call = self._service.WatchAdapters(request, timeout=timeout)
        try:
            with _wire.raising():
                async for response in call:
                    yield wire.change(response)
        finally:
            call.cancel()

    async def aliases(self, name: str) -> dict[str, dict[int, int]]:
        """Return what each alias of an adapter stands for: weight by version."""
        with _wire.raising():
            response = await self._service.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=name), timeout=self._timeout
            )
            return {alias.alias: wire.weights(alias.split) for alias in response.aliases}

    async def set_alias(
        self,
        name: str,
        alias: str,
        *,
        version: int | None = None,
        weights: wire.Weights | None = None,
        expected: int | wire.Weights | None = None,
        by: str = "",
    ) -> dict[int, int]:
        """Let `alias` stand for one version, or for several by weight, and return that.

        See `Adapters.set_alias`.
        """
        request = wire.set_alias_request(name, alias, version, weights, expected, by)
        with _wire.raising():
            response = await self._aliases.SetAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    async def delete_alias(
        self, name: str, alias: str, *, expected: int | wire.Weights | None = None, by: str = ""
    ) -> None:
        """Take an alias away; the versions stay. See `set_alias`."""
        request = aliases_pb2.DeleteAliasRequest(
            name=name, alias=alias, expected=wire.expected_split(expected), moved_by=by
        )
        with _wire.raising():
            await self._aliases.DeleteAlias(request, timeout=self._timeout)

    async def roll_back(self, name: str, alias: str, *, by: str = "") -> dict[int, int]:
        """Let `alias` stand for what it stood for before its last move, and return that."""
        request = aliases_pb2.RollBackAliasRequest(name=name, alias=alias, moved_by=by)
        with _wire.raising():
            response = await self._aliases.RollBackAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    async def alias_moves(self, name: str, alias: str, *, limit: int = 100) -> list[AliasMove]:
        """Return the last moves of an alias, the newest first."""
        found: list[AliasMove] = []
        token = ""
        with _wire.raising():
            while limit > len(found):
                response = await self._aliases.ListAliasMoves(
                    aliases_pb2.ListAliasMovesRequest(
                        name=name,
                        alias=alias,
                        page_size=min(limit - len(found), wire.PAGE_SIZE),
                        page_token=token,
                    ),
                    timeout=self._timeout,
                )
                found += [wire.move(move) for move in response.moves]
                token = response.next_page_token
                if not token:
                    break
        return found

    async def _attempt(self, upload: Upload) -> Adapter:
        """Send what the server does not have, and let it register the whole."""
        started = await self._uploads.StartUpload(upload.start_request(), timeout=upload.remaining)
        is_missing = upload.started(started)
        if started.HasField("adapter"):
            return wire.adapter(started.adapter)
        if is_missing:
            chunks = upload.chunks(started.upload_id)
            await self._uploads.SendChunks(chunks, timeout=upload.remaining)
        finished = await self._uploads.FinishUpload(
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
