"""Transactions of a catalog; small ones succeed even when the disk is full."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import sqlalchemy as sa

from loramux_server.store.reserve import Reserve

T = TypeVar("T")

_DISK_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})
"""SQLite's errors if its files cannot grow: the disk is full, or a quota is exhausted."""


class Transactions:
    """Runs reads and changes of a catalog."""

    def __init__(self, engine: sa.Engine, reserve: Reserve | None) -> None:
        """Work on the database of `engine`, with `reserve` as its spare disk space."""
        self.engine = engine
        self._reserve = reserve

    def read(self) -> AbstractContextManager[sa.Connection]:
        """Return a connection for reading, as a context manager."""
        return self.engine.connect()

    def large(self, change: Callable[[sa.Connection], T]) -> T:
        """Run `change` in one transaction, and return its result."""
        with self.engine.begin() as connection:
            return change(connection)

    def small(self, change: Callable[[sa.Connection], T]) -> T:
        """Like `large`, for a change that frees space or needs little.

        If the disk is full, it is retried once with the space of the reserve.
        """
        try:
            return self.large(change)
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") not in _DISK_FULL or not self._reserve:
                raise
            with self._reserve.released() as has_room:
                if not has_room:
                    raise
                return self.large(change)
