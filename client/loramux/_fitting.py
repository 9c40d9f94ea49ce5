"""Errors for values that do not fit their protobuf fields."""

from collections.abc import Iterator
from contextlib import contextmanager

from loramux import errors


@contextmanager
def fitting(field: str) -> Iterator[None]:
    """Turn a ValueError of protobuf into an InvalidArgumentError that names `field`."""
    try:
        yield
    except ValueError as error:
        raise errors.InvalidArgumentError(
            f"{field}: {error}", reason="INVALID_FIELD", field=field
        ) from None
