"""From staged bytes to a registered version."""

import asyncio
import datetime
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from loramux.errors import (
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.types import Adapter
from loramux.v1 import adapters_pb2
from loramux_adapters import PackageError
from loramux_adapters.embedding import Pooling
from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.field_errors import invalid
from loramux_server.observe.call_record import note
from loramux_server.services.adapters.expiry import end_of, ttl_of
from loramux_server.store.blobs import Staged
from loramux_server.store.check import check_package
from loramux_server.store.other_base import other_base
from loramux_server.store.record import IMPORT, UPLOAD, AdapterRecord
from loramux_server.store.reference import full_name, parse_name
from loramux_server.store.registry import Registry
from loramux_server.store.served_base import ServedBase
from loramux_server.store.signers import ANYBODY, TrustedSigners
from loramux_server.tasks import finished
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Scores, Token
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling

PROBE_TOKENS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How a package is to be registered."""

    name: str
    must_not_exist: bool
    ttl: datetime.timedelta | None
    """How long it stays; None until it is deleted."""
    if_absent: bool = False
    """Whether to keep a name that has versions by then as it is."""
    origin: str = ""
    """Where it was imported from; empty for an upload."""
    field: str = "chunk"
    """The request field to name in errors."""

    @classmethod
    def of(cls, header: adapters_pb2.UploadHeader) -> "Registration":
        """Return what a checked upload header declares."""
        ttl = ttl_of(header.ttl, "header.ttl") if header.HasField("ttl") else None
        return cls(name=header.name, must_not_exist=header.must_not_exist, ttl=ttl)


class Intake:
    """Checks, stores, tries out and registers what was staged."""

    def __init__(
        self,
        *,
        registry: Registry,
        engine: EngineClient,
        model: ModelInfo,
        base: ServedBase,
        max_upload_bytes: int,
        signers: TrustedSigners = ANYBODY,
    ) -> None:
        self.registry = registry
        self._engine = engine
        self._probe_prompt = _probe_prompt(model)
        self._max_prompt = model.source_length or model.context_length - 1
        self._decoder_start = [model.writing.decoder_start] if model.writing else []
        self._is_encoder = model.is_encoder
        self.base = base
        self._signers = signers
        self._max_upload_bytes = max_upload_bytes

    def check_header(self, header: adapters_pb2.UploadHeader) -> None:
        """Check the declaration of an upload.

        Raises:
            InvalidArgumentError: A field is invalid.
            FailedPreconditionError: The name belongs to the directory.
        """
        self.registry.check_writable(header.name, "header.name")
        if not 1 <= header.size_bytes <= self._max_upload_bytes:
            raise invalid(
                "header.size_bytes", header.size_bytes, f"1 to {self._max_upload_bytes} bytes"
            )
        digits = header.sha256
        if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
            raise invalid("header.sha256", digits, "64 lower-case hexadecimal digits")
        Registration.of(header)

    def reserved(self, header: adapters_pb2.UploadHeader) -> AbstractContextManager[None]:
        """Reserve quota for a declared upload during a block; see `Quotas.reserved`."""
        reference = parse_name(header.name, "header.name")
        digest = f"sha256:{header.sha256}"
        return self.registry.quotas.reserved(reference, digest, header.size_bytes)

    async def take_upload(
        self, staged: Staged, header: adapters_pb2.UploadHeader
    ) -> tuple[AdapterRecord, bool]:
        """Register a complete upload; see `take`.

        Raises:
            InvalidArgumentError: The digest is not the declared one.
        """
        if staged.digest != f"sha256:{header.sha256}":
            raise InvalidArgumentError(
                f"the bytes have digest {staged.digest}; header.sha256 is {header.sha256}",
                reason="DIGEST_MISMATCH",
                field="header.sha256",
            )
        return await self.take(staged, Registration.of(header))

    async def take(self, staged: Staged, wanted: Registration) -> tuple[AdapterRecord, bool]:
        """Register what was staged as a version; see `Registry.register`.

        Raises:
            InvalidArgumentError: It cannot be served.
            FailedPreconditionError: It seems to be made for another base, with --strict-base.
            AlreadyExistsError: The name has other content, which `must_not_exist` forbids.
            UnavailableError: The engine is down, so the package could not be tried out.
        """
        record = await finished(asyncio.to_thread(self._publish, wanted, staged))
        await self._try_out(record, wanted.field)
        record = replace(
            record,
            source=IMPORT if wanted.origin else UPLOAD,
            origin=wanted.origin,
            expires_at=end_of(wanted.ttl),
        )
        registering = asyncio.to_thread(
            self.registry.register,
            record,
            must_not_exist=wanted.must_not_exist,
            if_absent=wanted.if_absent,
        )
        registered, is_new = await finished(registering)
        note(adapter=str(registered), digest=registered.digest)
        return registered, is_new

    async def take_copy(self, staged: Staged, copied: Adapter) -> None:
        """Register what was staged as a replica's copy of a primary's version.

        It keeps its number. The primary has tried it out already.

        Raises:
            InvalidArgumentError: It cannot be served here.
            UnavailableError: The bytes are not those of the version.
        """
        if staged.digest != copied.digest:
            raise UnavailableError(
                f"the bytes received for {copied.reference} do not match its digest"
            )
        name = full_name(copied.tenant, copied.name)
        wanted = Registration(name=name, must_not_exist=False, ttl=None)
        record = replace(
            await finished(asyncio.to_thread(self._publish, wanted, staged, is_copy=True)),
            other_base=copied.other_base,
            version=copied.version,
            source=copied.source,
            origin=copied.origin,
            created_at=copied.created_at,
            expires_at=copied.expires_at,
        )
        await finished(asyncio.to_thread(self.registry.mirror, record))

    async def load(self, record: AdapterRecord) -> None:
        """Load a version to the device, and run a short prompt with it.

        Raises:
            LoramuxError: It cannot be loaded, or the engine is down.
        """
        mailbox: Mailbox[Token | Scores] = Mailbox(on_started=lambda _: None)
        source = self.registry.source_of(record)
        sampling = Sampling(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)
        # An aLoRA adapter would not be loaded without its invocation tokens.
        known = [t for t in self._probe_prompt if not 0 < record.vocab_size <= t] or [0]
        prompt = [*known, *source.invocation][source.virtual_tokens - self._max_prompt :]
        ask = Ask(
            prompt + self._decoder_start,
            source,
            sampling,
            record.tenant,
            pooling=Pooling.MEAN if self._is_encoder and not source.task else None,
            num_source=len(prompt) if self._decoder_start else 0,
        )
        request_id = self._engine.submit(mailbox, 0, ask)
        try:
            await mailbox.take()
        finally:
            self._engine.cancel(request_id)

    def _publish(
        self, wanted: Registration, staged: Staged, *, is_copy: bool = False
    ) -> AdapterRecord:
        """Check what was staged and store its bytes.

        For a copy, the primary has decided whether it fits the base.
        """
        try:
            package = check_package(staged.file, staged.size, self.base)
            self._signers.check(staged.file, package)
        except PackageError as error:
            raise InvalidArgumentError(
                str(error), reason=error.reason, field=wanted.field
            ) from None
        other = "" if is_copy else other_base(package, self.base, wanted.field)
        if other:
            _log.warning("%s seems to be made for another base model: %s", wanted.name, other)
        record = self.registry.publish(wanted.name, staged, package)
        vocab_size = self.base.vocabulary.size_for(package.contents)
        return replace(record, vocab_size=vocab_size, other_base=other)

    async def _try_out(self, record: AdapterRecord, field: str) -> None:
        """Generate a token with the adapter, so that a registered adapter is known to run."""
        try:
            await self.load(record)
        except (UnavailableError, ResourceExhaustedError):
            raise
        except LoramuxError as error:
            raise InvalidArgumentError(
                f"generating a test token with the adapter failed: {error}",
                reason=error.reason,
                field=field,
            ) from None


def _probe_prompt(model: ModelInfo) -> list[int]:
    """Return tokens from all over the vocabulary: some, such as padding, have no embedding."""
    count = max(1, min(PROBE_TOKENS, model.source_length or model.context_length - 1))
    return [model.vocab_size * (i + 1) // (count + 1) for i in range(count)]
