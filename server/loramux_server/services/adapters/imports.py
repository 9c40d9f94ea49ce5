"""Adapters that the server fetches itself; from then on they are handled like uploads."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO

from loramux.errors import CancelledError, InvalidArgumentError
from loramux.v1 import adapters_pb2
from loramux_adapters import PackageError, pack_source
from loramux_server.field_errors import wrong
from loramux_server.services.adapters.expiry import ttl_of
from loramux_server.services.adapters.intake import Intake, Registration
from loramux_server.services.adapters.storage import stoppable
from loramux_server.sources.policy import Opening, Sources
from loramux_server.sources.snapshot import Snapshot, unavailable
from loramux_server.store.blobs import Staged
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import Reference, parse_name
from loramux_server.tasks import finished

MAX_AT_ONCE = 4

IsCancelled = Callable[[], bool]


class Imports:
    """Fetches adapters from external sources. Runs on the event loop."""

    def __init__(self, intake: Intake, sources: Sources, max_bytes: int) -> None:
        """Import from `sources`, at most `max_bytes` at a time."""
        self._intake = intake
        self._registry = intake.registry
        self._sources = sources
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        # Separate threads, so that file writes of others do not wait for downloads.
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="import")

    async def take(self, request: adapters_pb2.ImportAdapterRequest) -> tuple[AdapterRecord, bool]:
        """Fetch what `request` names and register it as a version; see `Registry.register`.

        Raises:
            InvalidArgumentError: A field is invalid, or what was fetched cannot be served.
            PermissionDeniedError: Imports from there are not allowed.
            NotFoundError: There is no adapter.
            ResourceExhaustedError: The tenant's storage is full.
            UnavailableError: The source does not answer.
        """
        parse_name(request.name, "name")
        ttl = ttl_of(request.ttl, "ttl") if request.HasField("ttl") else None
        wanted = Registration(
            name=request.name, must_not_exist=request.must_not_exist, ttl=ttl, field="uri"
        )
        return await self.bring(wanted, self._sources.find(request.uri))

    async def bring(self, wanted: Registration, opening: Opening) -> tuple[AdapterRecord, bool]:
        """Fetch what `opening` opens and register it as a version; see `take`."""
        reference = parse_name(wanted.name, "name")
        self._registry.check_writable(wanted.name, "name")
        async with self._turns:
            staged = self._registry.stage()
            try:
                origin = await stoppable(
                    lambda is_cancelled: self._fetch(opening, reference, staged, is_cancelled),
                    self._threads,
                )
                with self._registry.quotas.reserved(reference, staged.digest, staged.size):
                    return await self._intake.take(staged, replace(wanted, origin=origin))
            finally:
                await finished(asyncio.to_thread(self._registry.discard, staged))

    def _fetch(
        self, opening: Opening, reference: Reference, staged: Staged, is_cancelled: IsCancelled
    ) -> str:
        """Stage the source's files and return its exact origin. Blocks.

        Raises:
            InvalidArgumentError: It is too large, or not a PEFT folder.
        """
        snapshot = opening(is_cancelled)
        size = sum(snapshot.sizes.values())
        self._check_size(size)
        # The digest is not known yet.
        with self._registry.quotas.reserved(reference, "", size):
            if len(snapshot.sizes) == 1:
                (name,) = snapshot.sizes
                for chunk in _chunks(snapshot, name, is_cancelled):
                    staged.write(chunk)
            else:
                self._fetch_folder(snapshot, staged, is_cancelled)
        self._check_size(staged.size)
        return snapshot.origin

    def _fetch_folder(self, snapshot: Snapshot, staged: Staged, is_cancelled: IsCancelled) -> None:
        with self._registry.blobs.scratch() as folder:
            for name in snapshot.sizes:
                (folder / name).parent.mkdir(exist_ok=True)
                with (folder / name).open("xb") as file:
                    _copy(_chunks(snapshot, name, is_cancelled), file)
            try:
                pack_source(folder, staged, base=self._intake.base)
            except PackageError as error:
                raise InvalidArgumentError(str(error), reason=error.reason, field="uri") from None

    def _check_size(self, size: int) -> None:
        if not 1 <= size <= self._max_bytes:
            raise wrong("uri", f"refers to {size} bytes; expected 1 to {self._max_bytes} bytes")


def _copy(chunks: Iterator[bytes], file: BinaryIO) -> None:
    for chunk in chunks:
        file.write(chunk)


def _chunks(snapshot: Snapshot, name: str, is_cancelled: IsCancelled) -> Iterator[bytes]:
    """Yield a file of a snapshot in chunks, and check its announced size.

    Raises:
        UnavailableError: The size differs.
        CancelledError: The caller was cancelled.
    """
    size, num_came = snapshot.sizes[name], 0
    for chunk in snapshot.read(name):
        if is_cancelled():
            raise CancelledError("the caller cancelled the request")
        num_came += len(chunk)
        if num_came > size:
            break
        yield chunk
    if num_came != size:
        raise unavailable(
            snapshot.origin, f"{name} does not have the announced size of {size} bytes"
        )
