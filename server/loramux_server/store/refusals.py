"""Errors of the registry for changes that are not allowed."""

from loramux.errors import AlreadyExistsError, FailedPreconditionError
from loramux_server.store.record import AdapterRecord


def read_only(name: str, field: str) -> FailedPreconditionError:
    """Return the error for changing a name, in request field `field`, of the directory."""
    return FailedPreconditionError(
        f"adapter {name!r} comes from the --adapters directory; change it there",
        reason="ADAPTER_READ_ONLY",
        field=field,
    )


def taken(old: AdapterRecord) -> AlreadyExistsError:
    """Return the error for a name that must not exist but has the newest version `old`."""
    return AlreadyExistsError(
        f"adapter {old.full_name!r} exists with other content, {old.digest}",
        reason="ADAPTER_EXISTS",
        field="header.name",
    )


def in_use(record: AdapterRecord, alias: str) -> FailedPreconditionError:
    """Return the error for deleting a version that an alias includes."""
    return FailedPreconditionError(
        f"alias {alias!r} points to {str(record)!r}; move it first",
        reason="VERSION_IN_USE",
        field="name",
    )
