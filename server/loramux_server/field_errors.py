"""Errors for invalid fields of a request."""

from loramux.errors import InvalidArgumentError
from loramux_adapters.errors import shown


def invalid(field: str, value: object, expected: str) -> InvalidArgumentError:
    """Return the error for a `field` whose `value` is not what is `expected`."""
    return wrong(field, f"is {shown(value)}; expected {expected}")


def wrong(field: str, said: str) -> InvalidArgumentError:
    """Return the error for `field`; `said` states what is wrong with it and what is expected."""
    return at_fault(field, f"{field} {said}")


def at_fault(field: str, message: str) -> InvalidArgumentError:
    """Return the error for `field` with a custom `message`, which names the field itself."""
    return InvalidArgumentError(message, reason="INVALID_FIELD", field=field)
