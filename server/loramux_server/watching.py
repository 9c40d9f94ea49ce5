"""The directory of adapters, looked at in a thread, again and again."""

import asyncio
import logging

import sqlalchemy.exc

from loramux_server.services.adapters.storage import stoppable
from loramux_server.store.directory import Directory

_log = logging.getLogger(__name__)


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
            _log.warning("--adapters is looked at again later: %s", error)
