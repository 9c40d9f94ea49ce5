"""Binding an external catalog to the folder of one store.

A catalog names packages in the folder of one store. A server with another folder would list
packages that it does not have, and both would assign the same version numbers.
"""

import os
import secrets
from pathlib import Path

from loramux_server.store.catalog import Catalog
from loramux_server.store.files import Files

_FILE = "store-id"
_NOTE = "store_id"


class OtherStoreError(Exception):
    """A catalog belongs to another store."""


def pair(catalog: Catalog, folder: Path) -> None:
    """Bind `catalog` to the store in `folder`, which no other process has open.

    Raises:
        OtherStoreError: It is bound to another store.
        OSError: The id file of the store cannot be read or written.
    """
    mine = _id_of(folder)
    if catalog.first_note(_NOTE, mine) != mine:
        raise OtherStoreError(
            "the catalog there belongs to another store, which has its packages; give each server "
            f"its own database, or use that store instead of {folder}"
        )


def _id_of(folder: Path) -> str:
    path = folder / _FILE
    if not path.exists():
        partial = folder / f"{_FILE}.part"
        with partial.open("w") as file:
            file.write(secrets.token_hex(16))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        Files().sync_folder(folder)
    return path.read_text()
