"""Whether an adapter was made for another base model than the one that is served."""

from loramux.errors import FailedPreconditionError
from loramux_adapters import Package
from loramux_server.store.check import ServedBase


def other_base(package: Package, base: ServedBase, field: str = "") -> str:
    """Return why a checked `package` seems to be made for another base model than `base`.

    Empty if nothing says so.

    Raises:
        FailedPreconditionError: Something does, and such adapters are refused.
    """
    other = base.identity.other(package)
    if other and base.is_strict:
        raise FailedPreconditionError(
            "the adapter seems to be made for another base model, and this server takes no such "
            f"adapters (--strict-base): {other}",
            reason="ADAPTER_BASE_MISMATCH",
            field=field,
        )
    return other
