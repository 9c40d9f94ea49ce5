"""What has to be refused."""

from collections.abc import Iterator
from contextlib import contextmanager

from loramux.errors import InvalidArgumentError, LoramuxError


@contextmanager
def refused(what: str, error: type[LoramuxError] = InvalidArgumentError) -> Iterator[None]:
    """Demand that the block ends with `error`."""
    try:
        yield
    except error:
        return
    raise AssertionError(f"{what} was not refused")
