"""Keeps the adapters of a replica what those of its primary are."""

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
from loramux_server.services.adapters.storage import finished, storage_errors
from loramux_server.store.reference import parse_name
from loramux_server.tasks import ended

_log = logging.getLogger(__name__)

CATCH_UP_SECONDS = 60.0
"""How often everything is compared, for what no change told of."""
MAX_AT_ONCE = 4
"""Adapters that are brought to the same state at once."""
TROUBLES = (LoramuxError, OSError, sqlalchemy.exc.DatabaseError)
"""Of a primary or a store; they may pass."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Mirror:
    """Brings versions, aliases and ends of time from a primary. Lives on the event loop.

    What the primary takes away goes here, too. Of one that has lost its store nothing comes and
    goes: it has another lineage then.
    """

    def __init__(
        self, primary: Primary, intake: Intake, on_state: Callable[[bool], object]
    ) -> None:
        """Prepare.

        Args:
            primary: Has what is to be here.
            intake: Checks and stores what comes.
            on_state: Told whether all was as it is there when it was last asked.
        """
        self._primary = primary
        self._intake = intake
        self._registry = intake.registry
        self._on_state = on_state
        self._turns = [asyncio.Lock() for _ in range(64)]
        """One adapter is brought to one state at a time."""
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._refused: set[str] = set()
        """Digests that cannot be served here."""

    async def begin(self) -> None:
        """Bring all that the primary has; if it does not answer, go on with what is here.

        Without anything here, wait until it answers: who is told that this server is ready takes
        an adapter that it does not have for one that is nowhere.
        """
        said = ""
        while True:
            try:
                await self.catch_up()
            except TROUBLES as error:
                kept, why = len(self._registry), str(error)
                if why != said:
                    said = why
                    _log.warning(
                        "the primary %s: %s; %s", self._primary.target, why,
                        f"serving the {kept} adapters here" if kept else "waiting for it",
                    )  # fmt: skip
                if not kept:
                    await asyncio.sleep(_FIRST_PAUSE)
                    continue
            return

    async def demand_same(self) -> None:
        """Demand that the primary goes on with what was copied from it.

        Raises:
            FailedPreconditionError: It has adapters of another lineage.
            LoramuxError: It does not answer.
        """
        theirs, ours = await self._primary.lineage(), self._registry.lineage
        if not ours.id and theirs:
            with storage_errors():
                await finished(asyncio.to_thread(ours.take, theirs))
        elif ours.id and theirs != ours.id:
            raise FailedPreconditionError(
                "the primary has lost its store, or is another server: its adapters are not those "
                "that were copied from it, which stay here as they are",
                reason="OTHER_LINEAGE",
            )

    async def catch_up(self) -> None:
        """Bring all adapters to the state that they have there.

        Raises:
            LoramuxError: The primary does not answer, or not to an administrator, or something
                cannot be stored.
        """
        await self._primary.demand_all()
        await self.demand_same()
        theirs = await self._primary.versions()
        ours = set(self._registry.names())
        names = [name for name in theirs.keys() | ours if self._differs(name, theirs.get(name, []))]
        await self._refresh_all(names)

    async def refresh(self, name: str) -> None:
        """Bring one adapter to the state that it has there.

        Raises:
            LoramuxError: The primary does not answer, or something cannot be stored.
        """
        async with self._turns[hash(name) % len(self._turns)], self._at_once:
            await self.demand_same()
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
            # Now that the aliases keep those here whose time is over, and that stay for them.
            await self._set_ends(name, versions)
            left = {(adapter.version, adapter.digest) for adapter in versions}
            gone = [r for r in self._registry.versions(name) if (r.version, r.digest) not in left]
            if gone:
                with storage_errors():
                    await finished(asyncio.to_thread(self._registry.forget, gone))

    async def run(self) -> None:
        """Follow the primary for good, whatever becomes of it meanwhile."""
        pause, said = _FIRST_PAUSE, ""
        while True:
            try:
                async for _ in self._rounds():
                    if said:
                        _log.info("the primary %s answers again", self._primary.target)
                    pause, said = _FIRST_PAUSE, ""
            except Exception as error:
                self._on_state(False)
                if str(error) != said:
                    said = str(error)
                    _log.warning(
                        "retrying the primary %s: %s", self._primary.target, said,
                        exc_info=not isinstance(error, TROUBLES),
                    )  # fmt: skip
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _rounds(self) -> AsyncIterator[None]:
        """Yield each time that all is as it is there.

        Raises:
            LoramuxError: The primary does not answer any more.
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
            await ended(watching)
            if not watching.cancelled():
                watching.exception()  # what came first says why

    async def _watch(self) -> None:
        """Note what changes there, until the primary ends that."""
        async for name in self._primary.changes():
            self._changed.add(name)
            self._wake.set()
        raise UnavailableError("it tells of no more changes")

    async def _refresh_all(self, names: Iterable[str]) -> None:
        """Bring adapters to the state that they have there, some at once.

        Raises:
            LoramuxError: One could not be; the others were tried.
        """
        tried = await asyncio.gather(*map(self.refresh, names), return_exceptions=True)
        for error in tried:
            if error is not None:
                raise error

    def _differs(self, name: str, theirs: list[Adapter]) -> bool:
        """Return whether an adapter may be another here than there."""
        reference = parse_name(name, "name")
        if self._registry.aliases.of((reference.tenant, reference.name)):
            return True
        return any(adapter.aliases for adapter in theirs) or [
            (r.version, r.digest, r.expires_at) for r in self._registry.versions(name)
        ] != [(a.version, a.digest, a.expires_at) for a in theirs]

    async def _take(self, name: str, adapter: Adapter) -> None:
        """Bring one version, unless it is here, for good as yet."""
        known = {r.version: r for r in self._registry.versions(name)}.get(adapter.version)
        if known and known.digest == adapter.digest:
            return
        if adapter.expires_at and not adapter.aliases and adapter.expires_at <= _now():
            return  # it is about to go there, and would go here at once
        if adapter.digest in self._refused:
            return
        with storage_errors():
            staged = self._registry.stage()
        try:
            with storage_errors():
                await self._primary.fetch(adapter, staged)
                await self._intake.take_copy(staged, replace(adapter, expires_at=None))
        except NotFoundError:
            pass  # it went meanwhile
        except InvalidArgumentError as error:
            self._refused.add(adapter.digest)
            _log.warning("%s of the primary is skipped: %s", adapter.reference, error)
        finally:
            await finished(asyncio.to_thread(self._registry.discard, staged))

    async def _set_ends(self, name: str, theirs: list[Adapter]) -> None:
        """Let the versions of an adapter that are here end when they do there."""
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
