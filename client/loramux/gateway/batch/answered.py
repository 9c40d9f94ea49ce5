"""What was answered: a file with a line for each request, which can be gone on with."""

import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from loramux.gateway.batch.lines import WrongLineError, decoded

OK = 200
_BEGINNING = b'{"id":'
"""Of each line."""


class Response(msgspec.Struct, frozen=True):
    """What HTTP would bring."""

    status_code: int
    request_id: str
    """What logs and traces of the server call it."""
    body: msgspec.Raw
    """JSON, as it came."""


class Answered(msgspec.Struct, frozen=True):
    """One request, and what came of it."""

    id: str
    custom_id: str
    response: Response
    error: None = None
    """Of OpenAI's format: why there is no response."""

    @classmethod
    def of(cls, custom_id: str, response: Response) -> Self:
        """Return it with an id of its own."""
        return cls(f"batch_req_{secrets.token_hex(12)}", custom_id, response)


class OutputFile:
    """The file that answers go to, one line each as they come."""

    def __init__(self, path: Path, *, goes_on: bool) -> None:
        """Open the file at `path`.

        Args:
            path: Where it is, or will be.
            goes_on: Keep what a run before this one was answered well. A line that it did not
                finish, and answers that tell of an error, are taken out.

        Raises:
            FileExistsError: It is there, and not to be gone on with.
            OSError: It cannot be read or written.
            WrongLineError: A line of it is no answer; nothing was changed.
        """
        self.done: set[str] = set()
        """Ids of requests that were answered well before."""
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
        """Write a line; who reads the file sees it."""
        self._file.write(_encoded(answered))
        self._file.flush()


def _answered_well(path: Path) -> list[Answered]:
    if not path.exists():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    found = [decoded(line, Answered, number) for number, line in enumerate(whole, start=1)]
    if not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
        raise WrongLineError(f"line {len(whole) + 1}: no answer, nor the beginning of one")
    return [answered for answered in found if answered.response.status_code == OK]


def _encoded(answered: Answered) -> bytes:
    return msgspec.json.encode(answered) + b"\n"
