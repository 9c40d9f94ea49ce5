"""Keeps the adapters of a replica in sync with those of its primary."""

import asyncio
import datetime
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import sqlalchemy.exc

from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    UnavailableError,
)
from loramux.types import Adapter
from loramux_server.replica.primary import Primary
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.reference import parse_name
from loramux_server.tasks import cancel_and_wait, finished

_log = logging.getLogger(__name__)

CATCH_UP_SECONDS = 60.0
"""Seconds between full comparisons, which find what no change event announced."""
MAX_AT_ONCE = 4
"""Adapters that are synchronized concurrently."""
TROUBLES = (LoramuxError, OSError, sqlalchemy.exc.DatabaseError)
"""Errors of the primary or the store that may be temporary."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Mirror:
    """Mirrors versions, aliases and expiry times of a primary. Lives on the event loop.

    What the primary deletes is deleted here, too. If the primary has lost its store, its lineage
    differs, and nothing is copied or deleted.
    """

    def __init__(
        self, primary: Primary, intake: Intake, on_state: Callable[[bool], object]
    ) -> None:
        """Prepare.

        Args:
            primary: The server to mirror.
            intake: Checks and stores packages.
            on_state: Called with whether the last synchronization succeeded.
        """
        self._primary = primary
        self._intake = intake
        self._registry = intake.registry
        self._on_state = on_state
        self._turns = [asyncio.Lock() for _ in range(64)]
        """By hash of the name: one adapter is refreshed at most once at a time."""
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._refused: set[str] = set()
        """Digests of packages that this server rejected."""

    async def begin(self) -> None:
        """Copy everything from the primary; if it does not answer, go on with what is here.

        With an empty store, wait until it answers. Clients take a ready server's NOT_FOUND to mean
        that an adapter does not exist at all.
        """
        last_error = ""
        while True:
            try:
                await self.catch_up()
            except TROUBLES as error:
                kept, why = len(self._registry), str(error)
                if why != last_error:
                    last_error = why
                    _log.warning(
                        "the primary %s: %s; %s", self._primary.target, why,
                        f"serving the {kept} adapters copied so far" if kept else "waiting for it",
                    )  # fmt: skip
                if not kept:
                    await asyncio.sleep(_FIRST_PAUSE)
                    continue
            return

    async def check_lineage(self) -> None:
        """Demand that the primary's store has the lineage of this one, which may adopt it now.

        Raises:
            FailedPreconditionError: It has another lineage.
            LoramuxError: The primary does not answer.
        """
        theirs, ours = await self._primary.lineage(), self._registry.lineage
        if not ours.id and theirs:
            with storage_errors():
                await finished(asyncio.to_thread(ours.take, theirs))
        elif ours.id and theirs != ours.id:
            raise FailedPreconditionError(
                "the primary has lost its store, or is another server: its adapters are not those "
                "that were copied from it; the copies are kept",
                reason="OTHER_LINEAGE",
            )

    async def catch_up(self) -> None:
        """Synchronize all adapters with the primary.

        Raises:
            LoramuxError: The primary does not answer, the key has no admin role, or something
                cannot be stored.
        """
        await self._primary.check_admin_key()
        await self.check_lineage()
        theirs = await self._primary.versions()
        ours = set(self._registry.names())
        names = [name for name in theirs.keys() | ours if self._differs(name, theirs.get(name, []))]
        await self._refresh_all(names)

    async def refresh(self, name: str) -> None:
        """Synchronize one adapter with the primary.

        Raises:
            LoramuxError: The primary does not answer, or something cannot be stored.
        """
        async with self._turns[hash(name) % len(self._turns)], self._at_once:
            await self.check_lineage()
            versions = (await self._primary.versions(name)).get(name, [])
            await self._set_ends(name, versions)
            for adapter in versions:
                await self._take(name, adapter)
            with suppress(NotFoundError):
                aliases = await self._primary.aliases(name) if versions else {}
                mirrored = asyncio.to_thread(
                    self._registry.aliases.mirror, parse_name(name, "name"), aliases
                )
                with storage_errors():
                    await finished(mirrored)
            # Again, for the expired versions that were copied: aliases now protect them.
            await self._set_ends(name, versions)
            left = {(adapter.version, adapter.digest) for adapter in versions}
            gone = [r for r in self._registry.versions(name) if (r.version, r.digest) not in left]
            if gone:
                with storage_errors():
                    await finished(asyncio.to_thread(self._registry.forget, gone))

    async def run(self) -> None:
        """Follow the primary forever, retrying with backoff after any error."""
        pause, last_error = _FIRST_PAUSE, ""
        while True:
            try:
                async for _ in self._rounds():
                    if last_error:
                        _log.info("the primary %s answers again", self._primary.target)
                    pause, last_error = _FIRST_PAUSE, ""
            except Exception as error:
                self._on_state(False)
                if str(error) != last_error:
                    last_error = str(error)
                    _log.warning(
                        "retrying the primary %s: %s", self._primary.target, last_error,
                        exc_info=not isinstance(error, TROUBLES),
                    )  # fmt: skip
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _rounds(self) -> AsyncIterator[None]:
        """Yield after each full synchronization; follow change events between them.

        Raises:
            LoramuxError: The primary no longer answers.
        """
        self._changed.clear()
        watching = asyncio.create_task(self._watch())
        watching.add_done_callback(lambda _: self._wake.set())
        clock = asyncio.get_running_loop().time
        try:
            while True:
                await self.catch_up()
                self._on_state(True)
                yield
                until = clock() + CATCH_UP_SECONDS
                while clock() < until:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(until):
                            await self._wake.wait()
                    self._wake.clear()
                    names, self._changed = self._changed, set()
                    await self._refresh_all(names)
                    if watching.done():
                        watching.result()
        finally:
            await cancel_and_wait(watching)
            if not watching.cancelled():
                watching.exception()  # retrieved, not raised: the first error tells why

    async def _watch(self) -> None:
        """Note which adapters change on the primary, until the stream ends."""
        async for name in self._primary.changes():
            self._changed.add(name)
            self._wake.set()
        raise UnavailableError("the stream of changes ended")

    async def _refresh_all(self, names: Iterable[str]) -> None:
        """Synchronize adapters, at most MAX_AT_ONCE concurrently.

        Raises:
            LoramuxError: One failed; all the others were tried.
        """
        tried = await asyncio.gather(*map(self.refresh, names), return_exceptions=True)
        for error in tried:
            if error is not None:
                raise error

    def _differs(self, name: str, theirs: list[Adapter]) -> bool:
        """Return whether an adapter may differ between replica and primary."""
        reference = parse_name(name, "name")
        if self._registry.aliases.of((reference.tenant, reference.name)):
            return True
        return any(adapter.aliases for adapter in theirs) or [
            (r.version, r.digest, r.expires_at) for r in self._registry.versions(name)
        ] != [(a.version, a.digest, a.expires_at) for a in theirs]

    async def _take(self, name: str, adapter: Adapter) -> None:
        """Copy one version, unless it is here; without its expiry time, which is set later."""
        known = {r.version: r for r in self._registry.versions(name)}.get(adapter.version)
        if known and known.digest == adapter.digest:
            return
        if adapter.expires_at and not adapter.aliases and adapter.expires_at <= _now():
            return  # the primary is about to delete it, and it would be deleted here at once
        if adapter.digest in self._refused:
            return
        with storage_errors():
            staged = self._registry.stage()
        try:
            with storage_errors():
                await self._primary.fetch(adapter, staged)
                await self._intake.take_copy(staged, replace(adapter, expires_at=None))
        except NotFoundError:
            pass  # deleted meanwhile
        except InvalidArgumentError as error:
            self._refused.add(adapter.digest)
            _log.warning("skipped adapter %s of the primary: %s", adapter.reference, error)
        finally:
            await finished(asyncio.to_thread(self._registry.discard, staged))

    async def _set_ends(self, name: str, theirs: list[Adapter]) -> None:
        """Give the versions of an adapter that are here the expiry times of the primary."""
        ours = {(r.version, r.digest): r for r in self._registry.versions(name)}
        for adapter in theirs:
            known = ours.get((adapter.version, adapter.digest))
            if known and known.expires_at != adapter.expires_at:
                changing = asyncio.to_thread(
                    self._registry.change, str(known),
                    partial(replace, expires_at=adapter.expires_at),
                )  # fmt: skip
                with storage_errors(), suppress(NotFoundError):
                    await finished(changing)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
