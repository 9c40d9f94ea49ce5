"""The directory of adapters, looked at in a thread, again and again."""

import asyncio
import logging
from functools import partial
from pathlib import Path

import sqlalchemy.exc

from loramux_server.observe.acts import DIRECTORY_ADD, DIRECTORY_REMOVE
from loramux_server.observe.audit import Audit
from loramux_server.services.adapters.storage import stoppable
from loramux_server.store.check import ServedBase
from loramux_server.store.directory import Directory
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.store.signers import TrustedSigners
from loramux_server.store.writing import ADDED

_log = logging.getLogger(__name__)


def directory_of(
    folder: Path | None,
    registry: Registry,
    base: ServedBase,
    signers: TrustedSigners,
    audit: Audit,
) -> Directory:
    """Return what brings the adapters of `folder` to `registry`, and tells `audit` of each."""
    return Directory(folder, registry, base, partial(_write_down, audit), signers)


async def look(directory: Directory, *, settles: bool) -> None:
    """Take in what is in `directory`; when cancelled, end with the entry at hand."""
    await stoppable(lambda is_cancelled: directory.look(settles=settles, is_cancelled=is_cancelled))


async def watch(directory: Directory, interval: float) -> None:
    """Take in, again and again, what is in `directory`."""
    while True:
        await asyncio.sleep(interval)
        try:
            await look(directory, settles=True)
        except (OSError, sqlalchemy.exc.OperationalError) as error:
            _log.warning("cannot scan --adapters, will retry: %s", error)


def _write_down(audit: Audit, what: str, record: AdapterRecord) -> None:
    """Tell the audit log what the directory brought or took away."""
    act = DIRECTORY_ADD if what == ADDED else DIRECTORY_REMOVE
    audit.write(act, tenant=record.tenant, adapter=str(record), digest=record.digest, outcome="OK")
