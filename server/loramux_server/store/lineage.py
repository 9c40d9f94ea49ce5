"""The lineage of a store: a random id that replicas adopt from their primary.

A primary that has lost its store gets a new lineage, so its replicas know that missing adapters
were not deleted. A replica that becomes the primary keeps it, so that other replicas can follow it.
"""

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

_NOTE = "lineage"


class Lineage:
    """The lineage of one store. Its methods block."""

    def __init__(self, catalog: "Catalog") -> None:
        """Read it from `catalog`."""
        self._catalog = catalog
        self.id = catalog.note(_NOTE) or ""
        """The id; empty in a replica that has not copied anything yet."""

    def begin(self) -> None:
        """Create an id, unless there is one."""
        if not self.id:
            self.take(secrets.token_hex(16))

    def take(self, mark: str) -> None:
        """Adopt the id `mark`, of a primary or a new one."""
        self._catalog.keep_note(_NOTE, mark)
        self.id = mark
