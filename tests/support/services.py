"""The services of a registry, with an engine that answers at once and no socket."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from loramux.errors import LoramuxError
from loramux.v1 import adapters_pb2, uploads_pb2
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.metrics.series import Metrics
from loramux_server.services.adapters.aliases import AliasService
from loramux_server.services.adapters.changes import Changes
from loramux_server.services.adapters.chunks import Chunks
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.uploads import UploadService
from loramux_server.sources.policy import Sources
from loramux_server.statuses import Statuses
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from loramux_server.wire.messages import Token
from tests.support.bases import ROOMY, SMALL

CONTEXT = cast(Any, SimpleNamespace(peer=lambda: "ipv4:127.0.0.1:1"))


class InstantEngine:
    """Makes a token of every request, or raises an error."""

    def __init__(self) -> None:
        self.error: LoramuxError | None = None

    def submit(self, mailbox: Mailbox[Token], index: int, *_: object, **__: object) -> int:
        if self.error:
            raise self.error
        mailbox.put(index, Token(1, 1))
        return 1

    def cancel(self, request_id: int) -> None:
        pass


class Services:
    """What answers calls about adapters."""

    def __init__(self, registry: Registry, engine: InstantEngine) -> None:
        model = cast(
            Any,
            SimpleNamespace(
                vocab_size=100, context_length=100, source_length=0, writing=None, is_encoder=False
            ),
        )
        intake = Intake(
            registry=registry,
            engine=cast(Any, engine),
            model=model,
            base=replace(ROOMY, layers=SMALL),
            max_upload_bytes=1 << 20,
        )
        statuses = Statuses()
        descriptions = Descriptions(registry, statuses, model)
        metrics, chunks = Metrics(), Chunks(30)
        self.uploads = UploadService(
            intake=intake,
            uploads=Uploads(registry, 100),
            descriptions=descriptions,
            metrics=metrics,
            chunks=chunks,
        )
        self.adapters = AdapterService(
            intake=intake,
            imports=Imports(intake, Sources(), 1 << 20),
            descriptions=descriptions,
            statuses=statuses,
            metrics=metrics,
            chunks=chunks,
            changes=Changes(descriptions),
        )
        self.aliases = AliasService(registry)

    async def send(self, name: str, package: bytes, *, must_not_exist: bool = False) -> str:
        """Bring all bytes of `package` and return the id of the upload; empty if none is needed."""
        header = adapters_pb2.UploadHeader(
            name=name,
            size_bytes=len(package),
            sha256=hashlib.sha256(package).hexdigest(),
            must_not_exist=must_not_exist,
        )
        request = uploads_pb2.StartUploadRequest(header=header)
        started = await self.uploads.StartUpload(request, CONTEXT)
        if started.HasField("adapter"):
            return ""

        async def chunks() -> AsyncIterator[uploads_pb2.SendChunksRequest]:
            yield uploads_pb2.SendChunksRequest(
                upload_id=started.upload_id,
                offset=started.committed_bytes,
                chunk=package[started.committed_bytes :],
            )

        if started.committed_bytes < len(package):
            await self.uploads.SendChunks(chunks(), CONTEXT)
        return started.upload_id

    async def finish(self, upload_id: str) -> uploads_pb2.FinishUploadResponse:
        """Check and register what came."""
        request = uploads_pb2.FinishUploadRequest(upload_id=upload_id)
        return await self.uploads.FinishUpload(request, CONTEXT)
