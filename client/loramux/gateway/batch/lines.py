"""The input file of a batch, with a request on each line, in OpenAI's batch format."""

from array import array
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import msgspec

URLS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/classify",
    "/v1/score", "/v1/rerank",
)  # fmt: skip
MAX_ID = 512
"""Longest `custom_id`, in characters."""

Kind = TypeVar("Kind")


class WrongLineError(ValueError):
    """A line is invalid; the message names it, and what would be right."""


class ChangedFileError(ValueError):
    """A file changed after it was read first; the message names the line."""


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request."""

    custom_id: str
    """The caller's id for it, unique within the file."""
    url: str
    body: dict[str, Any]
    method: str = "POST"


class RequestFile:
    """A file of requests. All are validated at once; iteration reads the file again.

    Blank lines are skipped.
    """

    def __init__(self, path: Path) -> None:
        """Validate all lines of the file at `path`.

        Raises:
            WrongLineError: A line is not a valid request, or has the id of an earlier one.
            OSError: The file cannot be read.
        """
        self.ids: set[str] = set()
        """Ids of all requests."""
        self._path = path
        self._hashes = array("q")
        """Hashes of the lines, to notice changes."""
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                self._hashes.append(hash(raw))
                if raw.strip():
                    self._note(_line(raw, number), number)

    def __iter__(self) -> Iterator[Line]:
        """Yield the requests.

        Raises:
            ChangedFileError: The file has changed.
            OSError: The file cannot be read.
        """
        with self._path.open("rb") as file:
            for number, (raw, known) in enumerate(zip_longest(file, self._hashes), start=1):
                if raw is None or hash(raw) != known:
                    what = (
                        "was removed"
                        if raw is None
                        else "was added"
                        if known is None
                        else "changed"
                    )
                    raise ChangedFileError(
                        f"line {number} {what} after the file was checked; expected the file to "
                        "stay unchanged"
                    )
                if raw.strip():
                    yield _line(raw, number)

    def _note(self, line: Line, number: int) -> None:
        if line.custom_id in self.ids:
            raise WrongLineError(
                f"line {number}: custom_id {line.custom_id!r} is repeated; expected unique ids"
            )
        self.ids.add(line.custom_id)


def decoded(raw: bytes, kind: type[Kind], number: int) -> Kind:
    """Return `raw`, the line `number` of a file, as a `kind`.

    Raises:
        WrongLineError: It is not JSON, or does not fit `kind`.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WrongLineError(f"line {number}: {error}") from None


def _line(raw: bytes, number: int) -> Line:
    line = decoded(raw, Line, number)
    wrong = ""
    if not 1 <= len(line.custom_id) <= MAX_ID:
        wrong = f"custom_id has {len(line.custom_id)} characters; expected 1 to {MAX_ID}"
    elif line.method != "POST":
        wrong = f"method is {line.method!r}; expected 'POST'"
    elif line.url not in URLS:
        wrong = f"url is {line.url!r}; expected one of {', '.join(URLS)}"
    elif line.body.get("stream"):
        wrong = "body.stream is true; expected false: a response is one line"
    if wrong:
        raise WrongLineError(f"line {number}: {wrong}")
    return line
