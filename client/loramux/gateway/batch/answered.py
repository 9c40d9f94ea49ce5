"""The output file of a batch, with a line for each request; a batch can be resumed from it."""

import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from loramux.gateway.batch.lines import WrongLineError, decoded

OK = 200
_BEGINNING = b'{"id":'
"""First bytes of each line."""


class Response(msgspec.Struct, frozen=True):
    """An HTTP response."""

    status_code: int
    request_id: str
    """The request's id in the server's logs and traces."""
    body: msgspec.Raw
    """The unparsed JSON."""


class Answered(msgspec.Struct, frozen=True):
    """A line of the output file: one request's response."""

    id: str
    custom_id: str
    response: Response
    error: None = None
    """A field of OpenAI's format; always None, as there is always a response."""

    @classmethod
    def of(cls, custom_id: str, response: Response) -> Self:
        """Return a line with a new id."""
        return cls(f"batch_req_{secrets.token_hex(12)}", custom_id, response)


class OutputFile:
    """The file to which responses are appended as they arrive, one per line."""

    def __init__(self, path: Path, *, goes_on: bool) -> None:
        """Open the file at `path`.

        Args:
            path: The file, which need not exist.
            goes_on: Resume an earlier run: keep its successful responses. An incomplete last line
                and error responses are removed.

        Raises:
            FileExistsError: It exists, and `goes_on` is False.
            OSError: It cannot be read or written.
            WrongLineError: A line of it is invalid; the file is unchanged.
        """
        self.done: set[str] = set()
        """Ids of requests that were answered successfully before."""
        if not goes_on:
            self._file = path.open("xb")
            return
        kept = _answered_well(path)
        self.done = {answered.custom_id for answered in kept}
        partial = path.with_name(f".{path.name}.part")
        partial.write_bytes(b"".join(map(_encoded, kept)))
        partial.replace(path)
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, answered: Answered) -> None:
        """Write a line and flush it."""
        self._file.write(_encoded(answered))
        self._file.flush()


def _answered_well(path: Path) -> list[Answered]:
    if not path.exists():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    found = [decoded(line, Answered, number) for number, line in enumerate(whole, start=1)]
    if not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
        raise WrongLineError(f"line {len(whole) + 1}: not a response, nor the beginning of one")
    return [answered for answered in found if answered.response.status_code == OK]


def _encoded(answered: Answered) -> bytes:
    return msgspec.json.encode(answered) + b"\n"
