"""Moments of the wall clock, with their time zone."""

import datetime


def in_utc(moment: datetime.datetime) -> datetime.datetime:
    """Return `moment` with its time zone, which SQLite does not keep."""
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def now_in_utc() -> datetime.datetime:
    """Return the wall-clock time: what a key expires by."""
    return datetime.datetime.now(datetime.UTC)
