"""Wall-clock times with a time zone."""

import datetime


def in_utc(moment: datetime.datetime) -> datetime.datetime:
    """Return `moment` with its time zone, UTC, which SQLite does not store."""
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def now_in_utc() -> datetime.datetime:
    """Return the current wall-clock time."""
    return datetime.datetime.now(datetime.UTC)
