"""Periodic scans of the directory of adapters, in a thread."""

import asyncio
import logging

import sqlalchemy.exc

from loramux_server.observe.audit import Audit
from loramux_server.observe.audited_actions import DIRECTORY_ADD, DIRECTORY_REMOVE
from loramux_server.services.adapters.storage import stoppable
from loramux_server.store.directory import Directory
from loramux_server.store.record import AdapterRecord
from loramux_server.store.write_lock import ADDED

_log = logging.getLogger(__name__)


class Changes:
    """Writes a directory's changes to the audit log, and a summary of the first scan to the log."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._at_start: list[str] | None = []

    def record(self, what: str, record: AdapterRecord) -> None:
        """Record a change: ADDED or REMOVED."""
        if self._at_start is not None:
            self._at_start.append(what)
        self._audit.write(
            DIRECTORY_ADD if what == ADDED else DIRECTORY_REMOVE,
            level=logging.INFO if self._at_start is None else logging.DEBUG,
            tenant=record.tenant, adapter=str(record), digest=record.digest, outcome="OK",
        )  # fmt: skip

    def log_summary(self, total: int) -> None:
        """Log how many changes there were so far; each later one is logged by itself."""
        found, self._at_start = self._at_start or [], None
        added = found.count(ADDED)
        _log.info(
            "--adapters has %d adapters: %d new or changed, %d removed since the last start",
            total, added, len(found) - added,
        )  # fmt: skip


async def scan(directory: Directory, *, settles: bool) -> int:
    """Scan `directory` and return its number of adapters; a cancelled scan ends between entries."""
    return await stoppable(
        lambda is_cancelled: directory.scan(settles=settles, is_cancelled=is_cancelled)
    )


async def watch(directory: Directory, interval: float) -> None:
    """Scan `directory` every `interval` seconds, until cancelled."""
    while True:
        await asyncio.sleep(interval)
        try:
            await scan(directory, settles=True)
        except (OSError, sqlalchemy.exc.DatabaseError) as error:
            _log.warning("cannot scan --adapters, will retry: %s", error)
