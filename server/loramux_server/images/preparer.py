"""The process that prepares images, seen from the frontend; what it made is kept for a while.

A conversation brings its images again with each turn.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from loramux.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from loramux_server.confinement.child import Offence
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
from loramux_server.images.turns import TenantTurns

T = TypeVar("T")

KEPT_BYTES = 64 << 20
MAX_ENDED = 256
"""Images that are remembered because the process ended over them."""
ANSWER_SECONDS = 60.0
"""The process counts the time in which it runs; this is for one that does not get to run."""
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
}
"""It has one core, nothing to tell, and no network."""


class Preparer:
    """Owns one process that prepares images, and gives it one at a time."""

    def __init__(
        self,
        setup: Setup,
        *,
        kept_bytes: int = KEPT_BYTES,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Prepare; nothing is started before the first image.

        Args:
            setup: What the process needs to know.
            kept_bytes: How much of what it made is kept.
            answer_seconds: How long it may work on an image, or not get to.
        """
        self._setup = setup
        self._process: ConfinedProcess | None = None
        self._turns = TenantTurns()
        self._works = set[asyncio.Task[Any]]()
        self._why_none = ""
        """Why the base model has no processor; empty where it may have one."""
        self._placeholder: Placeholder | None = None
        self._ended = OrderedDict[bytes, Offence]()
        """Digest of a file over which the process ended -> why it did."""
        self._kept = OrderedDict[tuple[str, bytes], PreparedImage]()
        """Those that were used last, the last one last, by tenant and digest of the file. How long
        a request takes tells nobody what images others have."""
        self._room = kept_bytes
        self._answer_seconds = answer_seconds

    async def prepare(self, data: bytes, field: str, tenant: str) -> PreparedImage:
        """Return what the base model takes of the image in a file.

        Args:
            data: The bytes of the file.
            field: The request field that it is.
            tenant: Whose it is; tenants take turns.

        Raises:
            InvalidArgumentError: The bytes are no image that is taken.
            FailedPreconditionError: The base model has no processor that can be used.
            UnavailableError: The process does not start, or does not answer.
        """
        key = tenant, hashlib.blake2b(data, digest_size=32).digest()
        if (kept := self._find(key)) is not None:
            return kept
        return await self._in_turn(tenant, lambda: self._work(key, data, field))

    async def placeholder(self, tenant: str) -> Placeholder:
        """Return what stands for an image of `tenant` before it is prepared.

        Raises:
            FailedPreconditionError: The base model has no processor that can be used.
            UnavailableError: The process does not start.
        """
        if self._placeholder is None:
            await self._in_turn(tenant, self._started)
        assert self._placeholder is not None
        return self._placeholder

    async def close(self) -> None:
        """End the process."""
        for work in self._works:
            work.cancel()
        if self._works:
            await asyncio.wait(self._works)
        if self._process:
            await self._process.end()

    async def _in_turn(self, tenant: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `make` gives, which has the process for itself.

        If the caller goes away, it is at work nevertheless: many who do not wait long would keep it
        from ever being ready.
        """
        await self._turns.take(tenant)
        work = asyncio.create_task(make())
        self._works.add(work)
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Task[Any]) -> None:
        self._works.discard(work)
        self._turns.give_back()
        if not work.cancelled():
            work.exception()  # whoever waited has it; where nobody does, nobody has to know

    async def _work(self, key: tuple[str, bytes], data: bytes, field: str) -> PreparedImage:
        """Return what becomes of an image, and keep it."""
        if (kept := self._find(key)) is not None:  # another caller had it prepared
            return kept
        _, digest = key
        if digest in self._ended:
            raise _fatal(field, self._ended[digest])
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
            self._ended[digest] = lost.offence
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)
            raise _fatal(field, lost.offence) from None
        if isinstance(answer, Refused):
            raise at_fault(field, f"{field}: {answer.message}")
        assert isinstance(answer, Prepared)
        self._keep(key, answer.prepared)
        return answer.prepared

    async def _started(self) -> ConfinedProcess:
        """Return the process, which is ready."""
        if not self._why_none:
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
            self._why_none = first.message
        raise FailedPreconditionError(
            f"images are not served: {self._why_none}", reason="IMAGES_NOT_SERVED"
        )

    async def _with_folder(self) -> Setup:
        """Return the setup with a folder where it has a hub id: the process has no network."""
        try:
            folder = await asyncio.to_thread(folder_of, self._setup.path)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the processor of {self._setup.path} cannot be had: {error}",
                reason="ENGINE_UNAVAILABLE",
            ) from error
        return msgspec.structs.replace(self._setup, path=folder)

    def _find(self, key: tuple[str, bytes]) -> PreparedImage | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def _keep(self, key: tuple[str, bytes], prepared: PreparedImage) -> None:
        self._kept[key] = prepared
        self._room -= prepared.image.num_bytes
        while self._room < 0:
            _, last = self._kept.popitem(last=False)
            self._room += last.image.num_bytes


def _fatal(field: str, offence: Offence) -> InvalidArgumentError:
    return at_fault(field, f"{field}: the image {offence.by('one')}")
