"""The way of a package from staged bytes to a version that requests can name."""

import asyncio

from loramux.errors import (
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1 import adapters_pb2
from loramux_adapters import PackageError
from loramux_server.engine.messages import ModelInfo, Sampling
from loramux_server.engine_client import EngineClient, Mailbox
from loramux_server.services.limits import invalid
from loramux_server.services.storage import finished
from loramux_server.store.blobs import Staged
from loramux_server.store.check import ServedBase, check_package
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry

PROBE_TOKENS = 8


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
    ) -> None:
        self.registry = registry
        self._engine = engine
        self._probe_prompt = _probe_prompt(model)
        self._base = base
        self._max_upload_bytes = max_upload_bytes

    def check_header(self, header: adapters_pb2.UploadHeader) -> None:
        """Demand that an upload may begin that declares this.

        Raises:
            InvalidArgumentError: A field is out of its limits.
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

    async def take(
        self, staged: Staged, header: adapters_pb2.UploadHeader
    ) -> tuple[AdapterRecord, bool]:
        """Make a version of what was staged; see `Registry.register`.

        Raises:
            InvalidArgumentError: The bytes are not those declared, or cannot be served.
            AlreadyExistsError: The name has other content and must not.
            UnavailableError: The engine is away, and the package could not be tried out.
        """
        if staged.digest != f"sha256:{header.sha256}":
            raise InvalidArgumentError(
                f"the bytes have digest {staged.digest}; header.sha256 is {header.sha256}",
                reason="DIGEST_MISMATCH",
                field="header.sha256",
            )
        record = await finished(asyncio.to_thread(self._publish, header.name, staged))
        await self._try_out(record)
        registering = asyncio.to_thread(
            self.registry.register, record, must_not_exist=header.must_not_exist
        )
        return await finished(registering)

    async def load(self, record: AdapterRecord) -> None:
        """Return when the weights of a version are on the device and made a token.

        Raises:
            LoramuxError: They cannot be loaded, or the engine is away.
        """
        mailbox = Mailbox(on_started=lambda _: None)
        source = self.registry.source_of(record)
        sampling = Sampling(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)
        prompt = self._probe_prompt[: self._base.context_length - source.virtual_tokens - 1]
        request_id = self._engine.submit(mailbox, 0, prompt, source, sampling, record.tenant)
        try:
            await mailbox.take()
        finally:
            self._engine.cancel(request_id)

    def _publish(self, name: str, staged: Staged) -> AdapterRecord:
        """Check what came and store its bytes."""
        try:
            package = check_package(staged.file, staged.size, self._base)
        except PackageError as error:
            raise InvalidArgumentError(str(error), reason=error.reason, field="chunk") from None
        return self.registry.publish(name, staged, package)

    async def _try_out(self, record: AdapterRecord) -> None:
        """Make a token with the adapter, so that what is registered is known to run."""
        try:
            await self.load(record)
        except (UnavailableError, ResourceExhaustedError):
            raise
        except LoramuxError as error:
            raise InvalidArgumentError(
                f"a first token with the adapter failed: {error}",
                reason=error.reason,
                field="chunk",
            ) from None


def _probe_prompt(model: ModelInfo) -> list[int]:
    """Return tokens from all over the vocabulary: some have no embedding, such as padding."""
    count = max(1, min(PROBE_TOKENS, model.context_length - 1))
    return [model.vocab_size * (i + 1) // (count + 1) for i in range(count)]
