"""Whether an adapter was made for a base model other than the served one."""

from loramux.errors import FailedPreconditionError
from loramux_adapters import Package
from loramux_server.store.served_base import ServedBase


def other_base(package: Package, base: ServedBase, field: str = "") -> str:
    """Return why a checked `package` seems to be made for a base model other than `base`.

    Empty if nothing indicates that.

    Raises:
        FailedPreconditionError: Something does, and `base.is_strict`.
    """
    other = base.identity.other(package)
    if other and base.is_strict:
        raise FailedPreconditionError(
            "the adapter seems to be made for another base model, which this server does not "
            f"accept (--strict-base): {other}",
            reason="ADAPTER_BASE_MISMATCH",
            field=field,
        )
    return other
