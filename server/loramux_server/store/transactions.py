"""Transactions of a catalog; small ones have room where the disk is full."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import sqlalchemy as sa

from loramux_server.store.reserve import Reserve

T = TypeVar("T")

_NO_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})
"""How SQLite fails where its files cannot grow: the disk is full, or a quota is used up."""


class Transactions:
    """What reads and changes a catalog."""

    def __init__(self, engine: sa.Engine, reserve: Reserve | None) -> None:
        """Work on the database of `engine`, for which `reserve` keeps room."""
        self.engine = engine
        self._reserve = reserve

    def read(self) -> AbstractContextManager[sa.Connection]:
        """Return a block that only looks."""
        return self.engine.connect()

    def large(self, change: Callable[[sa.Connection], T]) -> T:
        """Make one transaction of `change`, and return what it returns."""
        with self.engine.begin() as connection:
            return change(connection)

    def small(self, change: Callable[[sa.Connection], T]) -> T:
        """Do as `large` for what frees something or takes little.

        Where there is no room for it, it is tried once more with that of the reserve.
        """
        try:
            return self.large(change)
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") not in _NO_ROOM or not self._reserve:
                raise
            with self._reserve.given_up() as has_room:
                if not has_room:
                    raise
                return self.large(change)
