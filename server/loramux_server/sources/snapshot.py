"""The interface of all sources: the files of one adapter at one point in time."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from loramux.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from loramux_adapters.peft_folder import CONFIG_FILE, TENSOR_FILE
from loramux_adapters.sources import OPTIONAL_FILES
from loramux_server.field_errors import wrong

PACKAGE_SUFFIX = ".safetensors"
REQUIRED, OPTIONAL = (CONFIG_FILE, TENSOR_FILE), OPTIONAL_FILES
"""The files of a PEFT folder."""


class Snapshot(Protocol):
    """The files of one adapter. Its methods block."""

    origin: str
    """The URI of exactly this state, for example with a commit, if the source supports it."""
    sizes: Mapping[str, int]
    """File name -> size in bytes: one package, or the files of a PEFT folder."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the chunks of a file.

        Raises:
            AbortedError: The file changed since the snapshot was taken.
            UnavailableError: The source does not answer.
        """


def not_a_uri(uri: str, expected: str) -> InvalidArgumentError:
    """Return the error for an invalid import URI."""
    return wrong("uri", f"is {uri[:200]!r}; expected {expected}")


def not_found(uri: str, what: str) -> NotFoundError:
    """Return the error for something that does not exist at the source."""
    return NotFoundError(f"{uri}: {what}", reason="SOURCE_NOT_FOUND", field="uri")


def not_readable(uri: str) -> FailedPreconditionError:
    """Return the error for a source that denies this server access."""
    return FailedPreconditionError(
        f"{uri}: the source denies this server access; give the server credentials for it",
        reason="SOURCE_NOT_READABLE",
        field="uri",
    )


def changed(uri: str) -> AbortedError:
    """Return the error for files that changed while they were read."""
    return AbortedError(
        f"{uri} changed while it was being read; import it again",
        reason="SOURCE_CHANGED",
        field="uri",
    )


def unavailable(uri: str, why: str) -> UnavailableError:
    """Return the error for a source that does not answer."""
    return UnavailableError(
        f"{uri} cannot be read at present: {why}", reason="SOURCE_UNAVAILABLE", retry_delay=5.0
    )
