"""Values of a caller that do not fit their fields."""

from collections.abc import Iterator
from contextlib import contextmanager

from loramux import errors


@contextmanager
def fitting(field: str) -> Iterator[None]:
    """Name `field` where a value does not fit it."""
    try:
        yield
    except ValueError as error:
        raise errors.InvalidArgumentError(
            f"{field}: {error}", reason="INVALID_FIELD", field=field
        ) from None
