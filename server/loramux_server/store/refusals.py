"""What the registry says to who may not change a name."""

from loramux.errors import AlreadyExistsError, FailedPreconditionError
from loramux_server.store.record import AdapterRecord


def read_only(name: str, field: str) -> FailedPreconditionError:
    """Return the error for a change of a name, of the request field `field`, of the directory."""
    return FailedPreconditionError(
        f"adapter {name!r} comes from the --adapters directory; change it there",
        reason="ADAPTER_READ_ONLY",
        field=field,
    )


def taken(old: AdapterRecord) -> AlreadyExistsError:
    """Return the error for a name that must not exist and has the newest version `old`."""
    return AlreadyExistsError(
        f"adapter {old.full_name!r} exists with other content, {old.digest}",
        reason="ADAPTER_EXISTS",
        field="header.name",
    )


def in_use(record: AdapterRecord, alias: str) -> FailedPreconditionError:
    """Return the error for the end of a version that an alias stands for."""
    return FailedPreconditionError(
        f"alias {alias!r} stands for {str(record)!r}; move it first",
        reason="VERSION_IN_USE",
        field="name",
    )
