"""Moments as a database gives them back."""

import datetime


def in_utc(moment: datetime.datetime) -> datetime.datetime:
    """Return `moment` with its time zone, which SQLite does not keep."""
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
