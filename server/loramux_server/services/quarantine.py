"""QuarantineService: adapters and requests that are refused after crashes."""

import asyncio
import logging

import sqlalchemy.exc

from loramux.errors import NotFoundError
from loramux.v1 import quarantine_pb2
from loramux_adapters.errors import shown
from loramux_server.engine_link.quarantine import REQUEST, Entry, Quarantine, dump, load
from loramux_server.field_errors import invalid
from loramux_server.observe.audit import Audit
from loramux_server.observe.audited_actions import QUARANTINE_SET
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.registry import Registry
from loramux_server.tasks import finished
from loramux_server.transport.rpc import Context

_log = logging.getLogger(__name__)

_NOTE = "quarantine"
_MAX_KEY = 512


class QuarantineService:
    """Implements `loramux.v1.QuarantineService`, and persists the quarantine across restarts."""

    descriptor = quarantine_pb2.DESCRIPTOR.services_by_name["QuarantineService"]

    def __init__(self, quarantine: Quarantine, registry: Registry, audit: Audit) -> None:
        self._quarantine = quarantine
        self._registry = registry
        self._audit = audit
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        if kept := registry.catalog.note(_NOTE):
            quarantine.restore(load(kept))
        quarantine.on_refused = self._keep

    async def ListQuarantined(
        self, request: quarantine_pb2.ListQuarantinedRequest, context: Context
    ) -> quarantine_pb2.ListQuarantinedResponse:
        """List what is in quarantine."""
        entries = [self._message(entry) for entry in self._quarantine.entries]
        return quarantine_pb2.ListQuarantinedResponse(entries=entries)

    async def ClearQuarantined(
        self, request: quarantine_pb2.ClearQuarantinedRequest, context: Context
    ) -> quarantine_pb2.ClearQuarantinedResponse:
        """Release an adapter or a request from quarantine."""
        if not 0 < len(request.key) <= _MAX_KEY:
            raise invalid("key", request.key, f"1 to {_MAX_KEY} characters")
        key = request.key
        if not key.startswith((REQUEST, "sha256:")):
            key = self._registry.get(key, field="key").digest
        released = [entry for entry in self._quarantine.entries if entry.key == key]
        if not self._quarantine.clear(key):
            raise NotFoundError(
                f"{shown(request.key)} is not in quarantine",
                reason="NOT_QUARANTINED",
                field="key",
            )
        with storage_errors():
            await finished(self._write_without(released))
        return quarantine_pb2.ClearQuarantinedResponse()

    def _message(self, entry: Entry) -> quarantine_pb2.QuarantineEntry:
        message = quarantine_pb2.QuarantineEntry(
            key=entry.key,
            adapters=self._names(entry),
            cause=entry.cause,
        )
        message.since.FromDatetime(entry.since)
        return message

    def _names(self, entry: Entry) -> list[str]:
        return [str(record) for record in self._registry.with_digest(entry.key)]

    def _keep(self, entry: Entry) -> None:
        task = asyncio.create_task(self._audited(entry, self._names(entry)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _audited(self, entry: Entry, adapters: list[str]) -> None:
        await asyncio.to_thread(
            self._audit.write,
            QUARANTINE_SET,
            target={"key": entry.key},
            adapters=adapters,
            cause=entry.cause,
            outcome="OK",
        )
        try:
            await self._write()
        except sqlalchemy.exc.DatabaseError as error:
            _log.error(
                "the quarantine cannot be saved and would be lost in a restart: %s", error.orig
            )

    async def _write_without(self, released: list[Entry]) -> None:
        """Save the quarantine without `released`; if that fails, they are in it again."""
        try:
            await self._write()
        except Exception:
            self._quarantine.restore(released)  # as a restart would do, and for a retry
            raise

    async def _write(self) -> None:
        async with self._writing:
            text = dump(self._quarantine.entries)
            await asyncio.to_thread(self._registry.catalog.keep_note, _NOTE, text)
