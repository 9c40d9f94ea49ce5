"""Methods of the blocking client for adapters."""

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux._aliases import Aliases
from loramux._download import open_download
from loramux._instrumented_channel import sticky_channel
from loramux._upload import Progress, Upload, open_upload
from loramux.errors import LoramuxError
from loramux.types import Adapter, AdapterChange
from loramux.v1 import adapters_pb2, residency_pb2, uploads_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.residency_pb2_grpc import ResidencyServiceStub
from loramux.v1.uploads_pb2_grpc import UploadServiceStub


class Adapters(Aliases):
    """The adapters registered with a server.

    They are addressed by references, `[tenant/]name[:tag][@sha256:digest]`: the tag is a version or
    an alias; without one the newest version is meant.
    """

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        super().__init__(channel, timeout)
        self._service = AdapterServiceStub(channel)
        self._channel = channel
        self._residency = ResidencyServiceStub(channel)

    def upload(
        self,
        name: str,
        path: str | Path,
        *,
        must_not_exist: bool = False,
        ttl: datetime.timedelta | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Adapter:
        """Upload the PEFT folder or package at `path` as the next version of `name`.

        If the newest version has the same content, no new version is created; content that the
        tenant has in any version is not sent again. After a lost connection or a restart of the
        server the upload is resumed.

        Args:
            name: Name to register the adapter under, `[tenant/]name`.
            path: A folder written by PEFT's `save_pretrained`, or a package.
            must_not_exist: Fail if the newest version of `name` has other content.
            ttl: Time to live of the version, counted from its registration; None means no expiry,
                also for existing content that had one.
            progress: Called with (bytes sent, bytes in total); an interruption can set it back.
            timeout: Timeout of the call in seconds.
        """
        seconds = self._timeout if timeout is None else timeout
        opening = open_upload(
            name,
            path,
            must_not_exist=must_not_exist,
            ttl=ttl,
            progress=progress,
            timeout=seconds,
        )
        with opening as upload:
            uploads = UploadServiceStub(sticky_channel(self._channel, name))
            while True:
                try:
                    with _wire.raising():
                        return self._attempt(uploads, upload)
                except LoramuxError as error:
                    time.sleep(upload.delay(error))

    def import_from(
        self,
        name: str,
        uri: str,
        *,
        must_not_exist: bool = False,
        ttl: datetime.timedelta | None = None,
    ) -> Adapter:
        """Let the server fetch an adapter and register it as the next version of `name`.

        Args:
            name: Name to register the adapter under, `[tenant/]name`.
            uri: `hf://ORG/NAME[@REVISION][/PATH]`, or `s3://`, `gs://` or `az://` with bucket and
                path, of a package or of a folder saved by PEFT; or `oci://HOST/REPOSITORY[:TAG]` of
                an artifact that holds either. The server must allow imports from it.
            must_not_exist: Fail if the newest version of `name` has other content.
            ttl: Time to live of the version; None means no expiry.
        """
        request = wire.import_request(name, uri, must_not_exist=must_not_exist, ttl=ttl)
        with _wire.raising():
            response = self._service.ImportAdapter(request, timeout=self._timeout)
            return wire.adapter(response.adapter)

    def get(self, reference: str) -> Adapter:
        """Return the version `reference` resolves to; of several, that of the largest weight."""
        with _wire.raising():
            response = self._service.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def delete(self, reference: str, *, wait: bool = False) -> None:
        """Delete an adapter, or one version if `reference` names one.

        Requests that use it already finish with it.

        Args:
            reference: `[tenant/]name` for all versions and aliases, or one version.
            wait: Return only when no call uses it any more and its memory is free.
        """
        with _wire.raising():
            self._service.DeleteAdapter(
                adapters_pb2.DeleteAdapterRequest(name=reference, wait=wait), timeout=self._timeout
            )

    def set_ttl(self, reference: str, ttl: datetime.timedelta | None) -> Adapter:
        """Set the time to live of a version, counted from now, and return it; None means no expiry.

        When it expires it is deleted as by `delete`; while an alias points to it, the deletion is
        postponed.
        """
        with _wire.raising():
            response = self._service.SetAdapterTtl(
                wire.ttl_request(reference, ttl), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def download(
        self, reference: str, path: str | Path, *, progress: Progress | None = None
    ) -> Adapter:
        """Download the package of a version to `path`, whole or not at all; return the version."""
        request = adapters_pb2.DownloadAdapterRequest(name=reference)
        with open_download(path, progress) as download, _wire.raising():
            for response in self._service.DownloadAdapter(request, timeout=self._timeout):
                download.take(response)
            return download.finish()

    def pin(self, reference: str) -> Adapter:
        """Pin a version to the device, also after a restart; return when it is loaded."""
        with _wire.raising():
            response = self._residency.PinAdapter(
                residency_pb2.PinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def unpin(self, reference: str) -> Adapter:
        """Unpin a version, so that it may be evicted again."""
        with _wire.raising():
            response = self._residency.UnpinAdapter(
                residency_pb2.UnpinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def prefetch(self, reference: str) -> Adapter:
        """Load a version to the device; return when it is loaded."""
        with _wire.raising():
            response = self._residency.PrefetchAdapter(
                residency_pb2.PrefetchAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def watch(
        self, name: str = "", *, include_existing: bool = False, timeout: float | None = None
    ) -> Iterator[AdapterChange]:
        """Yield changes of one adapter, or of all, as they happen; closing the iterator ends it.

        With `include_existing`, the registered adapters come first, so that no change is missed.
        """
        request = adapters_pb2.WatchAdaptersRequest(name=name, include_existing=include_existing)
        call = self._service.WatchAdapters(request, timeout=timeout)
        try:
            with _wire.raising():
                for response in call:
                    yield wire.change(response)
        finally:
            call.cancel()

    def _attempt(self, uploads: UploadServiceStub, upload: Upload) -> Adapter:
        """Send the missing bytes and finish the upload."""
        started = uploads.StartUpload(upload.start_request(), timeout=upload.remaining)
        is_missing = upload.started(started)
        if started.HasField("adapter"):
            return wire.adapter(started.adapter)
        if is_missing:
            chunks = upload.chunks(started.upload_id)
            uploads.SendChunks(chunks, timeout=upload.remaining)
        finished = uploads.FinishUpload(
            uploads_pb2.FinishUploadRequest(upload_id=started.upload_id), timeout=upload.remaining
        )
        return wire.adapter(finished.adapter)

    def list(
        self,
        *,
        all_versions: bool = False,
        tenant: str = "",
        name_prefix: str = "",
        source: str = "",
        tier: str = "",
    ) -> list[Adapter]:
        """Return the newest version of each adapter, in the order of their names.

        Args:
            all_versions: Return every version, newest first.
            tenant: Only adapters of this tenant.
            name_prefix: Only names with this prefix.
            source: Only adapters from this source: `upload`, `directory` or `import`.
            tier: Only adapters whose weights are in this tier: `stored`, `host` or `device`.
        """
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
                response = self._service.ListAdapters(request, timeout=self._timeout)
                found += map(wire.adapter, response.adapters)
                token = response.next_page_token
                if not token:
                    return found
