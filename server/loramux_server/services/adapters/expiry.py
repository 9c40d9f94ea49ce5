"""Time to live of versions: validation, and deletion of expired ones."""

import asyncio
import datetime
import logging

import sqlalchemy.exc
from google.protobuf.duration_pb2 import Duration

from loramux_server.field_errors import wrong
from loramux_server.store.registry import Registry
from loramux_server.tasks import finished

MIN_TTL = datetime.timedelta(seconds=1)
MAX_TTL = datetime.timedelta(days=3650)

_log = logging.getLogger(__name__)


def ttl_of(message: Duration, field: str) -> datetime.timedelta:
    """Return the duration in the request field `field`.

    Raises:
        InvalidArgumentError: It is out of range.
    """
    # Compared as numbers, since values far out of range do not fit a timedelta.
    seconds = message.seconds + message.nanos / 1e9
    if not MIN_TTL.total_seconds() <= seconds <= MAX_TTL.total_seconds():
        raise wrong(field, f"is {seconds:g} s; expected 1 s to {MAX_TTL.days:,} days")
    return datetime.timedelta(seconds=seconds)


def end_of(ttl: datetime.timedelta | None) -> datetime.datetime | None:
    """Return when a `ttl` that starts now ends; None if there is none."""
    return None if ttl is None else datetime.datetime.now(datetime.UTC) + ttl


def expire(registry: Registry) -> None:
    """Delete versions that have expired by the wall clock."""
    for record in registry.expire(datetime.datetime.now(datetime.UTC)):
        _log.info("%s expired", record)


async def keep_expiring(registry: Registry, every: float) -> None:
    """Delete expired versions every `every` seconds, for ever."""
    said = ""
    while True:
        await asyncio.sleep(every)
        try:
            await finished(asyncio.to_thread(expire, registry))
        except (OSError, sqlalchemy.exc.DatabaseError) as error:
            why = str(error).partition("\n")[0]
            if why != said:  # a database may be down for long
                _log.warning("cannot delete expired adapters, will retry: %s", why)
            said = why
        else:
            said = ""
