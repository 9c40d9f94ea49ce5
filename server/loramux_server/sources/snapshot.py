"""What every source gives: the files of one adapter, as they are at one moment."""

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
from loramux_adapters.sources import BESIDE
from loramux_server.field_errors import wrong

PACKAGE_SUFFIX = ".safetensors"
REQUIRED, OPTIONAL = (CONFIG_FILE, TENSOR_FILE), BESIDE
"""The files of a PEFT folder."""


class Snapshot(Protocol):
    """The files of one adapter. Its methods block."""

    origin: str
    """The URI of exactly this state, as far as the source can name it."""
    sizes: Mapping[str, int]
    """Bytes of each file, by its name: one package, or those of a PEFT folder."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the pieces of a file.

        Raises:
            AbortedError: It changed since the snapshot was taken.
            UnavailableError: The source does not answer.
        """


def not_a_uri(uri: str, expected: str) -> InvalidArgumentError:
    """Return the error for a URI that names nothing that could be imported."""
    return wrong("uri", f"is {uri[:200]!r}; expected {expected}")


def not_found(uri: str, what: str) -> NotFoundError:
    """Return the error for something that the source does not have."""
    return NotFoundError(f"{uri}: {what}", reason="SOURCE_NOT_FOUND", field="uri")


def not_readable(uri: str) -> FailedPreconditionError:
    """Return the error for a source that knows this server and refuses it."""
    return FailedPreconditionError(
        f"{uri}: the source does not let this server read it; give the server credentials for it",
        reason="SOURCE_NOT_READABLE",
        field="uri",
    )


def changed(uri: str) -> AbortedError:
    """Return the error for files that are not what they were a moment ago."""
    return AbortedError(
        f"{uri} changed while it was read; import it again", reason="SOURCE_CHANGED", field="uri"
    )


def unavailable(uri: str, why: str) -> UnavailableError:
    """Return the error for a source that does not answer."""
    return UnavailableError(
        f"{uri} cannot be read at present: {why}", reason="SOURCE_UNAVAILABLE", retry_delay=5.0
    )
