"""The revision of keys, policies and disabled tenants: a cheap check for changes.

Another process may change them.
"""

import secrets

import sqlalchemy as sa

from loramux_server.store.schema import store

_KEY = "access_revision"


def read_revision(engine: sa.Engine) -> str:
    """Return a text that differs after each change of keys, policies or tenants."""
    with engine.connect() as connection:
        return connection.scalar(sa.select(store.c.value).where(store.c.key == _KEY)) or ""


def mark_change(connection: sa.Connection) -> None:
    """Set a new revision; call this first in a transaction that changes one of them.

    First, because SQLite cannot wait for another writer in a transaction that began with a read.
    """
    mark = {"value": secrets.token_hex(8)}
    update = sa.update(store).where(store.c.key == _KEY).values(mark)
    if not connection.execute(update).rowcount:
        connection.execute(sa.insert(store).values(key=_KEY, **mark))
