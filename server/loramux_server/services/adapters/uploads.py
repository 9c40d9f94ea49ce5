"""UploadService: resumable uploads."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from loramux.errors import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1 import adapters_pb2, uploads_pb2
from loramux_server.access.caller import caller
from loramux_server.metrics.series import Metrics
from loramux_server.services.adapters.chunks import Chunks, protocol_error
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.services.adapters.expiry import end_of
from loramux_server.services.adapters.intake import Intake, Registration
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.services.observer import counting_failed_uploads
from loramux_server.store.uploads import Registered, Upload, Uploads, no_upload
from loramux_server.tasks import finished
from loramux_server.transport.rpc import Context

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Declared:
    """The last declaration of an upload in progress, and a lock for finishing it."""

    header: adapters_pb2.UploadHeader
    finishing: asyncio.Lock = field(default_factory=asyncio.Lock)


class UploadService:
    """Implements `loramux.v1.UploadService`."""

    descriptor = uploads_pb2.DESCRIPTOR.services_by_name["UploadService"]

    def __init__(
        self,
        *,
        intake: Intake,
        uploads: Uploads,
        descriptions: Descriptions,
        metrics: Metrics,
        chunks: Chunks,
    ) -> None:
        self._intake = intake
        self._uploads = uploads
        self._descriptions = descriptions
        self._metrics = metrics
        self._chunks = chunks
        self._declared: dict[str, _Declared] = {}
        """Upload id -> its declaration, for uploads in progress."""

    async def StartUpload(
        self, request: uploads_pb2.StartUploadRequest, context: Context
    ) -> uploads_pb2.StartUploadResponse:
        """Start an upload, or report how far it got."""
        with counting_failed_uploads(self._metrics), storage_errors():
            return await self._start(request.header)

    async def SendChunks(
        self, requests: AsyncIterator[uploads_pb2.SendChunksRequest], context: Context
    ) -> uploads_pb2.SendChunksResponse:
        """Store chunks."""
        upload: Upload | None = None
        committed = 0
        incoming = self._chunks.of(requests)
        while (request := await incoming.next()) is not None:
            if upload is None:
                upload = self._own(request.upload_id)
            elif request.upload_id != upload.id:
                raise protocol_error(
                    "a stream must send the chunks of a single upload", "upload_id"
                )
            self._check(request, upload)
            with storage_errors():
                writing = asyncio.to_thread(
                    self._uploads.write, upload, request.offset, request.chunk
                )
                committed = await finished(writing)
        if upload is None:
            raise protocol_error("no chunk was received", "chunk")
        return uploads_pb2.SendChunksResponse(committed_bytes=committed)

    async def FinishUpload(
        self, request: uploads_pb2.FinishUploadRequest, context: Context
    ) -> uploads_pb2.FinishUploadResponse:
        """Check and register a complete upload."""
        with counting_failed_uploads(self._metrics), storage_errors():
            record, is_new = await self._finish(request.upload_id)
        self._metrics.uploads.labels("ok").inc()
        return uploads_pb2.FinishUploadResponse(
            adapter=self._descriptions.of(record), already_existed=not is_new
        )

    async def expire(self, every: float) -> None:
        """Delete abandoned uploads periodically, every `every` seconds."""
        while True:
            try:
                await finished(asyncio.to_thread(self._uploads.expire))
            except OSError as error:
                _log.warning("cannot delete expired uploads: %s", error)
            self._declared = {i: d for i, d in self._declared.items() if self._uploads.has(i)}
            await asyncio.sleep(every)

    def close(self) -> None:
        """Keep partial uploads for the next server."""
        self._uploads.close()

    async def _start(self, header: adapters_pb2.UploadHeader) -> uploads_pb2.StartUploadResponse:
        self._intake.check_header(header)
        digest = f"sha256:{header.sha256}"
        wanted = Registration.of(header)
        adopting = asyncio.to_thread(
            self._uploads.adopt,
            wanted.name,
            digest,
            must_not_exist=wanted.must_not_exist,
            expires_at=end_of(wanted.ttl),
        )
        if known := await finished(adopting):
            self._metrics.uploads.labels("ok").inc()
            return uploads_pb2.StartUploadResponse(
                committed_bytes=header.size_bytes,
                adapter=self._descriptions.of(known[0]),
                already_existed=not known[1],
            )
        starting = asyncio.to_thread(self._uploads.start, header.name, digest, header.size_bytes)
        upload = await finished(starting)
        self._declared.setdefault(upload.id, _Declared(header)).header = header
        return uploads_pb2.StartUploadResponse(
            upload_id=upload.id, committed_bytes=upload.staged.size
        )

    async def _finish(self, upload_id: str) -> Registered:
        if done := self._uploads.finished(upload_id):
            if not caller().owns(done[0].tenant):
                raise no_upload(upload_id)
            return done
        upload = self._own(upload_id)
        if not upload.is_complete:
            raise protocol_error(
                f"{upload.staged.size} bytes were received; header.size_bytes is {upload.size}",
                "header.size_bytes",
            )
        declared = self._declared[upload_id]
        async with declared.finishing:
            # A concurrent call may have finished it meanwhile.
            if done := self._uploads.finished(upload_id):
                return done
            if self._uploads.get(upload_id) is not upload:  # put aside, and continued
                raise no_upload(upload_id)
            upload.is_finishing, upload.touched = True, time.monotonic()
            try:
                self._check_inherited(upload, declared.header)
                result = await self._intake.take_upload(upload.staged, declared.header)
                await finished(asyncio.to_thread(self._uploads.end, upload, result))
            except (UnavailableError, ResourceExhaustedError, asyncio.CancelledError):
                raise  # the engine is down or busy: the bytes are kept for a retry
            except BaseException:
                # Disk errors, too: after a failed sync, a later successful one proves nothing.
                await finished(asyncio.to_thread(self._uploads.end, upload))
                raise
            finally:
                upload.is_finishing = False
            return result

    def _check_inherited(self, upload: Upload, header: adapters_pb2.UploadHeader) -> None:
        """Check that bytes from before a restart are intact: a power cut may have damaged them.

        Raises:
            NotFoundError: They are not; the caller has to start again.
        """
        if upload.staged.is_inherited and upload.is_hopeless(f"sha256:{header.sha256}"):
            raise NotFoundError(
                "the part received before the server was restarted is damaged; begin with "
                "StartUpload again",
                reason="UPLOAD_NOT_FOUND",
                field="upload_id",
            )

    def _own(self, upload_id: str) -> Upload:
        """Return an upload of the caller's tenant.

        Raises:
            NotFoundError: There is none with this id; another tenant's does not count.
        """
        upload = self._uploads.get(upload_id)
        if not caller().owns(upload.tenant):
            raise no_upload(upload_id)
        return upload

    def _check(self, request: uploads_pb2.SendChunksRequest, upload: Upload) -> None:
        """Check that a chunk lies within the upload and has a valid size.

        Raises:
            InvalidArgumentError: It does not.
        """
        end = request.offset + len(request.chunk)
        if request.offset < 0 or end > upload.size:
            raise InvalidArgumentError(
                f"the chunk has bytes {request.offset} to {end}, the package has {upload.size}",
                reason="UPLOAD_PROTOCOL",
                field="offset",
            )
        self._chunks.check_size(request.chunk, is_last=end == upload.size)
