"""How long versions stay: what a caller may ask for, and what happens when the time is over."""

import asyncio
import datetime
import logging

import sqlalchemy.exc
from google.protobuf.duration_pb2 import Duration

from loramux_server.field_errors import wrong
from loramux_server.services.adapters.storage import finished
from loramux_server.store.registry import Registry

MIN_TTL = datetime.timedelta(seconds=1)
MAX_TTL = datetime.timedelta(days=3650)

_log = logging.getLogger(__name__)


def ttl_of(message: Duration, field: str) -> datetime.timedelta:
    """Return the duration that came in the request field `field`.

    Raises:
        InvalidArgumentError: It is out of its limits.
    """
    # Compared as numbers: what is far beyond the limits fits no timedelta.
    seconds = message.seconds + message.nanos / 1e9
    if not MIN_TTL.total_seconds() <= seconds <= MAX_TTL.total_seconds():
        raise wrong(field, f"is {seconds:g} s; expected 1 s to {MAX_TTL.days:,} days")
    return datetime.timedelta(seconds=seconds)


def end_of(ttl: datetime.timedelta | None) -> datetime.datetime | None:
    """Return when it is over if it begins now."""
    return None if ttl is None else datetime.datetime.now(datetime.UTC) + ttl


def expire(registry: Registry) -> None:
    """Take away what stayed long enough by the wall clock."""
    for record in registry.expire(datetime.datetime.now(datetime.UTC)):
        _log.info("%s expired", record)


async def keep_expiring(registry: Registry, every: float) -> None:
    """Take away what stayed long enough, again and again, each `every` seconds."""
    said = ""
    while True:
        await asyncio.sleep(every)
        try:
            await finished(asyncio.to_thread(expire, registry))
        except (OSError, sqlalchemy.exc.OperationalError) as error:
            why = str(error).partition("\n")[0]
            if why != said:  # a database may be away for long
                _log.warning("cannot delete expired adapters, will retry: %s", why)
            said = why
        else:
            said = ""
