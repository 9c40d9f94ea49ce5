"""The store that a command works on, and its catalog."""

import getpass
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loramux_server.observe.audit import audited
from loramux_server.store.places import stores_folder

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

Store = Annotated[
    Path | None,
    typer.Option(
        envvar="LORAMUX_STORE",
        metavar="DIR",
        help="The server's --store; default: the one in the user's data directory.",
    ),
]


CatalogUrl = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        envvar="LORAMUX_CATALOG",
        metavar="URL",
        help="The server's --catalog, if it has one.",
    ),
]
AuditLog = Annotated[
    str | None,
    typer.Option(
        "--audit-log",
        envvar="LORAMUX_AUDIT_LOG",
        metavar="FILE",
        help="The server's --audit-log, to record this operation in, too.",
    ),
]


def found_store(store: Path | None) -> Path:
    """Return `store`, or the folder of the user's only store if it is None.

    Raises:
        typer.BadParameter: There is not exactly one.
    """
    if store is not None:
        return store
    folder = stores_folder()
    found = [path.parent for path in sorted(folder.glob("*/catalog.sqlite"))]
    if len(found) != 1:
        what = f"{len(found)} stores" if found else "no store"
        raise typer.BadParameter(
            f"found {what} in {folder}; give --store DIR, the same as for `loramux serve`"
        )
    return found[0]


def audited_by_user(
    path: str | None, act: str, **fields: object
) -> AbstractContextManager[dict[str, object]]:
    """Return a context manager that records `act` in the audit log at `path`; see `audited`."""
    return audited(path, act, user=getpass.getuser(), **fields)


@contextmanager
def open_catalog(folder: Path, url: str | None) -> "Iterator[Catalog]":
    """Open the catalog at `url`, or that of the store in `folder`, creating it if needed.

    A server may be using it.

    Raises:
        OSError: It cannot be opened; the message says why.
    """
    # Imported here to keep `loramux --help` fast.
    import sqlalchemy.exc

    from loramux_server.store.catalog import Catalog, CatalogUrlError
    from loramux_server.store.schema import NewerFormatError

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        catalog = Catalog.at(url, folder)
    except (NewerFormatError, CatalogUrlError) as error:
        raise OSError(f"{folder}: {error}") from None
    except sqlalchemy.exc.DatabaseError as error:
        raise OSError(f"{folder}: the catalog cannot be opened: {error.orig}") from None
    try:
        yield catalog
    except sqlalchemy.exc.OperationalError as error:
        raise OSError(f"{folder}: the catalog cannot be written: {error.orig}") from None
    finally:
        catalog.close()
