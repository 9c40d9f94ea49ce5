"""A mark on who may call, cheap to look at, because another process may change that."""

import secrets

import sqlalchemy as sa

from loramux_server.store.schema import store

_KEY = "access_revision"


def read_revision(engine: sa.Engine) -> str:
    """Return what is another text after each change of keys, policies or tenants."""
    with engine.connect() as connection:
        return connection.scalar(sa.select(store.c.value).where(store.c.key == _KEY)) or ""


def mark_change(connection: sa.Connection) -> None:
    """Note, first in a transaction, that it changes keys, policies or tenants.

    First, because a writer that began by reading could not wait for another one to end.
    """
    mark = {"value": secrets.token_hex(8)}
    update = sa.update(store).where(store.c.key == _KEY).values(mark)
    if not connection.execute(update).rowcount:
        connection.execute(sa.insert(store).values(key=_KEY, **mark))
