"""What is asked: a file with a request on each line, in the format of OpenAI's batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MAX_ID = 512
"""Characters."""

Kind = TypeVar("Kind")


class WrongLineError(ValueError):
    """A line is not what it has to be; the message names it, and what would be right."""


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request."""

    custom_id: str
    """What the caller calls it; nothing else in the file has that name."""
    url: str
    body: dict[str, Any]
    method: str = "POST"


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the requests in the file at `path`; empty lines are left out.

    Raises:
        WrongLineError: A line is none, or has the id of an earlier one.
        OSError: The file cannot be read.
    """
    known: set[str] = set()
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            line = _line(raw, number)
            if line.custom_id in known:
                raise WrongLineError(
                    f"line {number}: custom_id {line.custom_id!r} is there before; expected each "
                    "once"
                )
            known.add(line.custom_id)
            yield line


def decoded(raw: bytes, kind: type[Kind], number: int) -> Kind:
    """Return what the line `number` of a file holds, `raw`.

    Raises:
        WrongLineError: It is no JSON, or not that of a `kind`.
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
        wrong = "body.stream is true; expected false: an answer is one line"
    if wrong:
        raise WrongLineError(f"line {number}: {wrong}")
    return line
