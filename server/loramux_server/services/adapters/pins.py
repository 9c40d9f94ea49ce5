"""Versions that are pinned to the device."""

import asyncio
from dataclasses import replace

from loramux.errors import ResourceExhaustedError
from loramux_server.engine_link.client import EngineClient
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.store.served_base import ServedBase
from loramux_server.tasks import finished


class Pins:
    """Keeps the engine's pins in sync with the registry's. Runs on the event loop."""

    def __init__(self, registry: Registry, engine: EngineClient, base: ServedBase) -> None:
        self._registry = registry
        self._engine = engine
        self._base = base
        every = registry.records(all_versions=True)
        self._pinned = {record.key: record for record in every if record.is_pinned}
        self._changing = asyncio.Lock()

    def resume(self) -> None:
        """Pin all versions again in an engine that has just started."""
        for record in self._pinned.values():
            self._send_pin(record)

    async def pin(self, reference: str) -> AdapterRecord:
        """Pin a version and return it; its load has started then.

        A cancelled call still pins or unpins in the engine what it has in the registry.

        Raises:
            NotFoundError: It is not registered.
            ResourceExhaustedError: It does not fit the device together with what is pinned.
        """
        return await finished(self._pin(reference))

    async def unpin(self, reference: str) -> AdapterRecord:
        """Unpin a version and return it.

        Raises:
            NotFoundError: It is not registered.
        """
        return await finished(self._unpin(reference))

    def forget(self, record: AdapterRecord) -> None:
        """Handle that a version was unpinned or deleted."""
        if self._pinned.pop(record.key, None) is None:
            return
        if not any(other.digest == record.digest for other in self._pinned.values()):
            self._engine.unpin(record.digest)

    async def _pin(self, reference: str) -> AdapterRecord:
        async with self._changing:
            record = self._registry.get(reference)
            others = {r.digest: r for r in self._pinned.values() if r.digest != record.digest}
            taken = sum(map(self._rows, others.values()))
            if taken + self._rows(record) > self._base.max_rows:
                raise ResourceExhaustedError(
                    f"{str(record)!r} takes {self._rows(record)} rank rows; the adapter memory "
                    f"holds {self._base.max_rows}, of which {taken} are already pinned",
                    reason="PINS_FULL",
                    field="name",
                )
            await self._set(record, pinned=True)
            record = self._registry.get(str(record))  # it may have been deleted meanwhile
            self._pinned[record.key] = record
            self._send_pin(record)
            return record

    async def _unpin(self, reference: str) -> AdapterRecord:
        async with self._changing:
            record = await self._set(self._registry.get(reference), pinned=False)
            self.forget(record)
            return record

    def _send_pin(self, record: AdapterRecord) -> None:
        self._engine.pin(self._registry.source_of(record).as_stored(self._base.storage_format))

    async def _set(self, record: AdapterRecord, *, pinned: bool) -> AdapterRecord:
        return await asyncio.to_thread(
            self._registry.change, str(record), lambda found: replace(found, is_pinned=pinned)
        )

    def _rows(self, record: AdapterRecord) -> int:
        item_bytes = self._base.storage_format.item_bytes(record.item_bytes)
        return self._base.row_size.rows_of(record.rank, item_bytes, record.edit_bytes)
