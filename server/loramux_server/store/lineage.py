"""Whose adapters a store has: a mark that replicas take over from their primary.

A primary that has lost its store has another one then, and so its replicas know that what it lacks
was not deleted. A replica that becomes a primary keeps it, so that others may be told its address.
"""

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

_NOTE = "lineage"


class Lineage:
    """The mark of one store. Its methods block."""

    def __init__(self, catalog: "Catalog") -> None:
        """Read what `catalog` has."""
        self._catalog = catalog
        self.id = catalog.note(_NOTE) or ""
        """The mark; empty where a replica has had nothing yet."""

    def begin(self) -> None:
        """Make a mark, unless there is one."""
        if not self.id:
            self.take(secrets.token_hex(16))

    def take(self, mark: str) -> None:
        """Have the mark of a primary."""
        self._catalog.keep_note(_NOTE, mark)
        self.id = mark
