"""The frontend's side of image preprocessing, with a cache of results.

The cache matters because a conversation sends its images again with each turn.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from loramux.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from loramux_server.confinement.child import ExitCause
from loramux_server.confinement.process import ConfinedProcess, LostAnswerError
from loramux_server.field_errors import at_fault
from loramux_server.images.folder import folder_of
from loramux_server.images.messages import (
    Answer,
    Loaded,
    Placeholder,
    Prepared,
    PreparedImage,
    Refused,
    Setup,
    Unavailable,
    decode_answer,
    encode,
)
from loramux_server.images.tenant_lock import TenantLock

T = TypeVar("T")

CACHE_BYTES = 64 << 20
MAX_CRASHES = 256
"""How many images are remembered for having crashed the process."""
ANSWER_SECONDS = 60.0
"""The process limits its own processor time; this is for one that does not get scheduled."""
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
}
"""The process has one core, logs nothing and has no network."""


class Preparer:
    """Owns one process that preprocesses images, one at a time."""

    def __init__(
        self,
        setup: Setup,
        *,
        revision: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Store the settings; the process is started with the first image.

        Args:
            setup: Settings of the process; its path may be a hub id.
            revision: Revision of the hub id; None means the current one.
            cache_bytes: Size of the cache of results.
            answer_seconds: Wall-clock limit per image, including time in which the process is not
                scheduled.
        """
        self._setup, self._revision = setup, revision
        self._process: ConfinedProcess | None = None
        self._lock = TenantLock()
        self._tasks = set[asyncio.Task[Any]]()
        self._no_processor_reason = ""
        """Why the base model has no processor; empty if it has one or that is not known yet."""
        self._placeholder: Placeholder | None = None
        self._crashes = OrderedDict[bytes, ExitCause]()
        """Digest of a file that crashed the process -> why it ended."""
        self._cache = OrderedDict[tuple[str, bytes], PreparedImage]()
        """LRU cache by tenant and file digest, most recently used last. It is per tenant so that
        the latency of a request does not reveal what images others have."""
        self._free_bytes = cache_bytes
        self._answer_seconds = answer_seconds

    async def prepare(self, data: bytes, field: str, tenant: str) -> PreparedImage:
        """Return the preprocessed image.

        Args:
            data: The bytes of the file.
            field: Name of the request field, for errors.
            tenant: The tenant it belongs to; tenants take turns.

        Raises:
            InvalidArgumentError: The bytes are not an acceptable image.
            FailedPreconditionError: The base model has no usable processor.
            UnavailableError: The process does not start, or does not answer.
        """
        key = tenant, hashlib.blake2b(data, digest_size=32).digest()
        if (kept := self._find(key)) is not None:
            return kept
        return await self._exclusively(tenant, lambda: self._work(key, data, field))

    async def placeholder(self, tenant: str) -> Placeholder:
        """Return what stands for an image of `tenant` before it is preprocessed.

        Raises:
            FailedPreconditionError: The base model has no usable processor.
            UnavailableError: The process does not start.
        """
        if self._placeholder is None:
            await self._exclusively(tenant, self._started)
        assert self._placeholder is not None
        return self._placeholder

    async def close(self) -> None:
        """End the process."""
        for work in self._tasks:
            work.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._process:
            await self._process.end()

    async def _exclusively(self, tenant: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `make`, which has the process to itself.

        It runs to the end even if the caller is cancelled: otherwise callers with short deadlines
        could keep the process from ever becoming ready.
        """
        await self._lock.acquire(tenant)
        work = asyncio.create_task(make())
        self._tasks.add(work)
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Task[Any]) -> None:
        self._tasks.discard(work)
        self._lock.release()
        if not work.cancelled():
            work.exception()  # mark it as retrieved: the caller has it, or is gone

    async def _work(self, key: tuple[str, bytes], data: bytes, field: str) -> PreparedImage:
        """Return the preprocessed image, and cache it."""
        if (kept := self._find(key)) is not None:  # another caller had it preprocessed meanwhile
            return kept
        _, digest = key
        if digest in self._crashes:
            raise _fatal(field, self._crashes[digest])
        process = await self._started()
        try:
            answer: Answer = decode_answer(await process.ask(data, self._answer_seconds))
        except LostAnswerError as lost:
            if lost.code is None:
                raise UnavailableError(
                    f"{field} was not prepared within {self._answer_seconds:g} seconds; the server "
                    "is busy",
                    reason="SERVER_BUSY",
                ) from None
            self._crashes[digest] = lost.exit_cause
            if len(self._crashes) > MAX_CRASHES:
                self._crashes.popitem(last=False)
            raise _fatal(field, lost.exit_cause) from None
        if isinstance(answer, Refused):
            raise at_fault(field, f"{field}: {answer.message}")
        assert isinstance(answer, Prepared)
        self._cache_result(key, answer.prepared)
        return answer.prepared

    async def _started(self) -> ConfinedProcess:
        """Return the process once it is ready."""
        if not self._no_processor_reason:
            if self._process is None:
                self._process = ConfinedProcess(
                    "loramux_server.images.worker",
                    encode(await self._with_folder()),
                    "prepares images",
                    _VARIABLES,
                )
            first: Answer = decode_answer(await self._process.ready())
            if isinstance(first, Loaded):
                self._placeholder = first.placeholder
                return self._process
            assert isinstance(first, Unavailable)
            await self._process.end()
            self._no_processor_reason = first.message
        raise FailedPreconditionError(
            f"images are not supported: {self._no_processor_reason}", reason="IMAGES_NOT_SERVED"
        )

    async def _with_folder(self) -> Setup:
        """Return the setup with a folder in place of a hub id: the process has no network."""
        try:
            path, revision = self._setup.path, self._revision
            folder = await asyncio.to_thread(folder_of, path, revision=revision)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the processor of {self._setup.path} is not available: {error}",
                reason="ENGINE_UNAVAILABLE",
            ) from error
        return msgspec.structs.replace(self._setup, path=folder)

    def _find(self, key: tuple[str, bytes]) -> PreparedImage | None:
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
        return found

    def _cache_result(self, key: tuple[str, bytes], prepared: PreparedImage) -> None:
        self._cache[key] = prepared
        self._free_bytes -= prepared.image.num_bytes
        while self._free_bytes < 0:
            _, last = self._cache.popitem(last=False)
            self._free_bytes += last.image.num_bytes


def _fatal(field: str, cause: ExitCause) -> InvalidArgumentError:
    return at_fault(field, f"{field}: the image {cause.describe('an image')}")
