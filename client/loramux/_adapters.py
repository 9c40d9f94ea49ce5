"""What the blocking client does with adapters."""

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux._aliases import Aliases
from loramux._calling import to_home
from loramux._download import open_download
from loramux._upload import Progress, Upload, open_upload
from loramux.errors import LoramuxError
from loramux.types import Adapter, AdapterChange
from loramux.v1 import adapters_pb2, residency_pb2, uploads_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.residency_pb2_grpc import ResidencyServiceStub
from loramux.v1.uploads_pb2_grpc import UploadServiceStub


class Adapters(Aliases):
    """The adapters that are registered with a server.

    They are named by references, `[tenant/]name[:tag][@sha256:digest]`: the tag is a version or an
    alias, and without one the newest version is meant.
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
        """Register the PEFT folder or package at `path` as the next version of `name`.

        Content that is the newest version already gets no second number, and content that the
        tenant has at all is not sent again. A broken connection or a restart of the server is
        waited for, and the upload goes on where it was.

        Args:
            name: What requests will call the adapter, `[tenant/]name`.
            path: A folder that PEFT's `save_pretrained` wrote, or a package.
            must_not_exist: Refuse if the newest version of `name` has other content.
            ttl: How long the version stays from when it is registered; None means until it is
                deleted, also for content that is there and was to expire.
            progress: Called with (bytes sent, bytes in all); an interruption can set it back.
            timeout: Seconds that the call may take.
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
            uploads = UploadServiceStub(to_home(self._channel, name))
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
            name: What requests will call the adapter, `[tenant/]name`.
            uri: `hf://ORG/NAME[@REVISION][/PATH]`, or `s3://`, `gs://` or `az://` with bucket and
                path: of a package, or of a folder that PEFT saved; or of an artifact that has
                either, `oci://HOST/REPOSITORY[:TAG]`. The server has to allow it.
            must_not_exist: Refuse if the newest version of `name` has other content.
            ttl: How long the version stays; None means until it is deleted.
        """
        request = wire.import_request(name, uri, must_not_exist=must_not_exist, ttl=ttl)
        with _wire.raising():
            response = self._service.ImportAdapter(request, timeout=self._timeout)
            return wire.adapter(response.adapter)

    def get(self, reference: str) -> Adapter:
        """Return the version that `reference` stands for; of several, the one of most weight."""
        with _wire.raising():
            response = self._service.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def delete(self, reference: str, *, wait: bool = False) -> None:
        """Take an adapter away, or one version if `reference` says which.

        Requests that use it already finish with it.

        Args:
            reference: `[tenant/]name` for all versions and aliases, or one version.
            wait: Return only when no call uses any more what was taken away and its memory is free.
        """
        with _wire.raising():
            self._service.DeleteAdapter(
                adapters_pb2.DeleteAdapterRequest(name=reference, wait=wait), timeout=self._timeout
            )

    def set_ttl(self, reference: str, ttl: datetime.timedelta | None) -> Adapter:
        """Let a version stay for `ttl` from now on, or for good if that is None, and return it.

        When its time is over it is taken away as by `delete`; as long as an alias stands for it,
        that waits.
        """
        with _wire.raising():
            response = self._service.SetAdapterTtl(
                wire.ttl_request(reference, ttl), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def download(
        self, reference: str, path: str | Path, *, progress: Progress | None = None
    ) -> Adapter:
        """Write the package of a version to the file `path`, whole or not at all, and return it."""
        request = adapters_pb2.DownloadAdapterRequest(name=reference)
        with open_download(path, progress) as download, _wire.raising():
            for response in self._service.DownloadAdapter(request, timeout=self._timeout):
                download.take(response)
            return download.finish()

    def pin(self, reference: str) -> Adapter:
        """Keep a version on the device, also after a restart; return when it is there."""
        with _wire.raising():
            response = self._residency.PinAdapter(
                residency_pb2.PinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def unpin(self, reference: str) -> Adapter:
        """Let a version go again when others need its room."""
        with _wire.raising():
            response = self._residency.UnpinAdapter(
                residency_pb2.UnpinAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def prefetch(self, reference: str) -> Adapter:
        """Bring a version to the device; return when it is there."""
        with _wire.raising():
            response = self._residency.PrefetchAdapter(
                residency_pb2.PrefetchAdapterRequest(name=reference), timeout=self._timeout
            )
            return wire.adapter(response.adapter)

    def watch(
        self, name: str = "", *, include_existing: bool = False, timeout: float | None = None
    ) -> Iterator[AdapterChange]:
        """Yield changes of one adapter, or of all, as they happen; closing the iterator ends it.

        With `include_existing`, what is registered comes first, so that nothing is missed between.
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
        """Send what the server does not have, and let it register the whole."""
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
        """Return adapters in the order of their names, each with its newest version.

        Args:
            all_versions: Every version, the newest first.
            tenant: Only those of this tenant.
            name_prefix: Only those whose names begin so.
            source: Only those from there: `upload`, `directory` or `import`.
            tier: Only those whose weights are there: `stored`, `host` or `device`.
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
