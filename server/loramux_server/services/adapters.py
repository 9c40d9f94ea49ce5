"""AdapterService: uploads, and what is registered."""

import asyncio
from collections.abc import AsyncIterator

from loramux.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1 import adapters_pb2
from loramux_adapters import PackageError
from loramux_server.engine.messages import AdapterSource, ModelInfo, Sampling
from loramux_server.engine_client import EngineClient, Mailbox
from loramux_server.metrics import Metrics
from loramux_server.rpc import Context
from loramux_server.services.limits import invalid, name_of
from loramux_server.services.observer import outcome_of
from loramux_server.services.storage import finished, storage_errors
from loramux_server.store.blobs import Staged
from loramux_server.store.catalog import DIRECTORY, UPLOAD, AdapterRecord
from loramux_server.store.check import ServedBase, check_package
from loramux_server.store.registry import Registry

MIN_CHUNK_BYTES = 64 << 10
MAX_CHUNK_BYTES = 1 << 20
MAX_EMPTY_CHUNKS = 16
MAX_PAGE = 1000
DEFAULT_PAGE = 100
PROBE_TOKENS = 8

_SOURCES = {
    UPLOAD: adapters_pb2.ADAPTER_SOURCE_UPLOAD,
    DIRECTORY: adapters_pb2.ADAPTER_SOURCE_DIRECTORY,
}
_TIERS = {
    "stored": adapters_pb2.ADAPTER_TIER_STORED,
    "host": adapters_pb2.ADAPTER_TIER_HOST,
    "device": adapters_pb2.ADAPTER_TIER_DEVICE,
}


class AdapterService:
    """Implements `loramux.v1.AdapterService`."""

    def __init__(
        self,
        *,
        registry: Registry,
        engine: EngineClient,
        model: ModelInfo,
        base: ServedBase,
        metrics: Metrics,
        max_upload_bytes: int,
        idle_timeout: float,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._probe_prompt = _probe_prompt(model)
        self._base = base
        self._metrics = metrics
        self._max_upload_bytes = max_upload_bytes
        self._idle_timeout = idle_timeout
        self.tiers: dict[str, str] = {}
        """Digest -> fastest tier, as the engine reports it; what is absent is stored only."""

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
        record = self._registry.get(name_of(request.name, "name"))
        return adapters_pb2.GetAdapterResponse(adapter=self._message(record))

    async def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, context: Context
    ) -> adapters_pb2.ListAdaptersResponse:
        """Describe a page of adapters; the page token is the last name of the page before."""
        if request.page_size < 0:
            raise invalid("page_size", request.page_size, f"0 to {MAX_PAGE}")
        if request.page_token:
            name_of(request.page_token, "page_token")
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        records = [r for r in self._registry.records() if r.name > request.page_token]
        return adapters_pb2.ListAdaptersResponse(
            adapters=[self._message(record) for record in records[:size]],
            next_page_token=records[size - 1].name if len(records) > size else "",
        )

    async def DeleteAdapter(
        self, request: adapters_pb2.DeleteAdapterRequest, context: Context
    ) -> adapters_pb2.DeleteAdapterResponse:
        """Take an adapter away."""
        with storage_errors():
            await finished(self._delete(name_of(request.name, "name")))
        return adapters_pb2.DeleteAdapterResponse()

    async def _delete(self, name: str) -> None:
        await asyncio.to_thread(self._registry.delete, name)
        self._metrics.labels.forget(name)

    async def _upload(
        self, requests: AsyncIterator[adapters_pb2.UploadAdapterRequest]
    ) -> adapters_pb2.UploadAdapterResponse:
        first = await self._next(requests)
        if first is None or first.WhichOneof("message") != "header":
            raise _protocol("the first message of an upload is its header", "header")
        header = first.header
        self._check_header(header)
        staged = self._registry.stage()
        try:
            await self._receive(requests, staged, header)
            record = await finished(asyncio.to_thread(self._publish, header.name, staged))
            await self._probe(record)
            registering = asyncio.to_thread(
                self._registry.register, record, must_not_exist=header.must_not_exist
            )
            registered = await finished(registering)
        finally:
            await finished(asyncio.to_thread(self._registry.discard, staged))
        return adapters_pb2.UploadAdapterResponse(
            adapter=self._message(registered), already_existed=registered is not record
        )

    def _publish(self, name: str, staged: Staged) -> AdapterRecord:
        """Check what came and store its bytes."""
        try:
            package = check_package(staged.file, staged.size, self._base)
        except PackageError as error:
            raise InvalidArgumentError(str(error), reason=error.reason, field="chunk") from None
        return self._registry.publish(name, staged, package)

    def _check_header(self, header: adapters_pb2.UploadHeader) -> None:
        self._registry.check_writable(name_of(header.name, "header.name"), "header.name")
        if not 1 <= header.size_bytes <= self._max_upload_bytes:
            raise invalid(
                "header.size_bytes", header.size_bytes, f"1 to {self._max_upload_bytes} bytes"
            )
        digits = header.sha256
        if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
            raise invalid("header.sha256", digits, "64 lower-case hexadecimal digits")

    async def _receive(
        self,
        requests: AsyncIterator[adapters_pb2.UploadAdapterRequest],
        staged: Staged,
        header: adapters_pb2.UploadHeader,
    ) -> None:
        """Write the chunks that follow the header, which have to be what it declares."""
        num_empty = 0
        was_small = False
        while (request := await self._next(requests)) is not None:
            if request.WhichOneof("message") == "header":
                raise _protocol("a header came twice", "header")
            chunk = request.chunk
            num_empty += not chunk
            if num_empty > MAX_EMPTY_CHUNKS:
                raise _protocol(f"more than {MAX_EMPTY_CHUNKS} empty chunks", "chunk")
            if len(chunk) > MAX_CHUNK_BYTES:
                raise _protocol(
                    f"a chunk has {len(chunk)} bytes; at most {MAX_CHUNK_BYTES}", "chunk"
                )
            if chunk and was_small:
                raise _protocol(
                    f"a chunk before the last has less than {MIN_CHUNK_BYTES} bytes", "chunk"
                )
            was_small = was_small or 0 < len(chunk) < MIN_CHUNK_BYTES
            if staged.size + len(chunk) > header.size_bytes:
                raise _protocol(
                    f"more bytes came than header.size_bytes, {header.size_bytes}",
                    "header.size_bytes",
                )
            await finished(asyncio.to_thread(staged.write, chunk))
        if staged.size != header.size_bytes:
            raise _protocol(
                f"{staged.size} bytes came; header.size_bytes is {header.size_bytes}",
                "header.size_bytes",
            )
        if staged.digest != f"sha256:{header.sha256}":
            raise InvalidArgumentError(
                f"the bytes have digest {staged.digest}; header.sha256 is {header.sha256}",
                reason="DIGEST_MISMATCH",
                field="header.sha256",
            )

    async def _next(
        self, requests: AsyncIterator[adapters_pb2.UploadAdapterRequest]
    ) -> adapters_pb2.UploadAdapterRequest | None:
        """Return the next message of an upload, or None at its end."""
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no message of the upload came for {self._idle_timeout:g} s",
                reason="DEADLINE_EXCEEDED",
            ) from None

    async def _probe(self, record: AdapterRecord) -> None:
        """Generate one token with the adapter, so that what is registered is known to run."""
        mailbox = Mailbox(on_started=lambda _: None)
        source: AdapterSource = self._registry.source_of(record)
        sampling = Sampling(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)
        request_id = self._engine.submit(mailbox, 0, self._probe_prompt, source, sampling)
        try:
            await mailbox.take()
        except LoramuxError as error:
            if isinstance(error, UnavailableError | ResourceExhaustedError):
                raise
            raise InvalidArgumentError(
                f"a first token with the adapter failed: {error}",
                reason=error.reason,
                field="chunk",
            ) from None
        finally:
            self._engine.cancel(request_id)

    def _message(self, record: AdapterRecord) -> adapters_pb2.Adapter:
        message = adapters_pb2.Adapter(
            name=record.name,
            digest=record.digest,
            size_bytes=record.size_bytes,
            rank=record.rank,
            target_modules=record.target_modules,
            base_model=record.base_model,
            source=_SOURCES[record.source],
            tier=_TIERS[self.tiers.get(record.digest, "stored")],
        )
        message.created_at.FromDatetime(record.created_at)
        return message


def _probe_prompt(model: ModelInfo) -> list[int]:
    """Return tokens from all over the vocabulary: some have no embedding, such as padding."""
    count = max(1, min(PROBE_TOKENS, model.context_length - 1))
    return [model.vocab_size * (i + 1) // (count + 1) for i in range(count)]


def _protocol(message: str, field: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="UPLOAD_PROTOCOL", field=field)
