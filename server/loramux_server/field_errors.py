"""The errors for fields of a request that are wrong, whatever else is right."""

from loramux.errors import InvalidArgumentError
from loramux_adapters.errors import shown


def invalid(field: str, value: object, expected: str) -> InvalidArgumentError:
    """Return the error for a field with this `value`, where another is `expected`."""
    return wrong(field, f"is {shown(value)}; expected {expected}")


def wrong(field: str, said: str) -> InvalidArgumentError:
    """Return the error for a field of which `said` tells what is wrong, and what would be right."""
    return at_fault(field, f"{field} {said}")


def at_fault(field: str, message: str) -> InvalidArgumentError:
    """Return the error with a `message` that names `field` in a way of its own."""
    return InvalidArgumentError(message, reason="INVALID_FIELD", field=field)
