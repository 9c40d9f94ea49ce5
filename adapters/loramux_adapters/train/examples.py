"""Examples as a file of JSON lines: what to read, and what to learn after it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.strict_json import parse_object

MAX_LINE_BYTES = 1 << 20
PAIRS = ({"prompt", "completion"}, {"text", "label"})
"""The keys of a line; all lines of a file have the same."""

_WANTED = (
    'a line is {"prompt": "…", "completion": "…"} or {"text": "…", "label": "…"}, with texts that '
    "are not empty"
)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt to read, and the completion to learn."""

    prompt: str
    completion: str
    line: int
    """Number of its line in the file, from 1."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of one file."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    labels: tuple[str, ...]
    """The distinct labels, sorted; none for lines of prompt and completion."""
    examples: tuple[Example, ...]


def read_examples(path: Path) -> Examples:
    """Return the examples in `path`.

    Text and label become the prompt `TEXT ->` and the completion ` LABEL`.

    Raises:
        PackageError: A line is none; the message has the file, the line and what would be right.
        OSError: The file cannot be read.
    """
    sha256 = hashlib.sha256()
    examples: list[Example] = []
    labels: set[str] = set()
    keys: set[str] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            sha256.update(line)
            where = f"{path}, line {number}"
            found = _fields(line, where)
            if keys and found.keys() != keys:
                raise _fault(
                    f"{where} has {_listed(found)}, the lines before {_listed(keys)}; all lines "
                    "of a file have the same keys"
                )
            keys = set(found)
            if "text" in found:
                labels.add(found["label"])
                examples.append(Example(f"{found['text']} ->", f" {found['label']}", number))
            else:
                examples.append(Example(found["prompt"], found["completion"], number))
    if not examples:
        raise _fault(f"{path} is empty; {_WANTED}")
    return Examples(path, f"sha256:{sha256.hexdigest()}", tuple(sorted(labels)), tuple(examples))


def _fields(line: bytes, where: str) -> dict[str, str]:
    if len(line) > MAX_LINE_BYTES:
        raise _fault(f"{where} is above {MAX_LINE_BYTES} bytes")
    try:
        found = parse_object(line, where)
    except ValueError as error:
        raise _fault(f"{error}; {_WANTED}") from None
    if set(found) not in PAIRS:
        raise _fault(f"{where} has {_listed(found)}; {_WANTED}")
    fields: dict[str, str] = {}
    for key, value in found.items():
        if not isinstance(value, str) or not value.strip():
            raise _fault(f"{where}: {key} is {shown(value)}; {_WANTED}")
        fields[key] = value
    return fields


def _listed(keys: Iterable[str]) -> str:
    return f"the keys {shown(sorted(keys))}"


def _fault(message: str) -> PackageError:
    return PackageError(message, "INVALID_FIELD")
