"""How an adapter turns a text into an embedding vector.

PEFT does not save this, so a package has it as the note `embedding`.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.errors import PackageError, shown


class Pooling(enum.StrEnum):
    """How the last hidden states of a text are reduced to one vector."""

    LAST = "last"
    """That of the last token."""
    MEAN = "mean"
    """The mean of those of all tokens."""
    FIRST = "first"
    """That of the first token."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Pooling and normalization; the defaults are for packages without the note."""

    pooling: Pooling = Pooling.LAST
    normalize: bool = True
    """Whether vectors are scaled to length 1."""


DEFAULT = Embedding()


def check_embedding(note: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Validate `note`, the note `embedding`, and return it; messages begin with `where`.

    Raises:
        PackageError: The note is malformed.
    """
    for name, value in note.items():
        if name not in ("pooling", "normalize"):
            raise _invalid(
                f"{where}: {shown(name)} is not a known key; expected pooling or normalize"
            )
        if name == "normalize" and type(value) is not bool:
            raise _invalid(f"{where}: normalize is {shown(value)}; expected true or false")
        if name == "pooling" and (not isinstance(value, str) or value not in set(Pooling)):
            known = ", ".join(Pooling)
            raise _invalid(f"{where}: pooling is {shown(value)}; expected one of {known}")
    return note


def embedding_of(note: object, default: Embedding = DEFAULT) -> Embedding:
    """Return the `Embedding` of a validated note; what it does not state comes from `default`."""
    given = note if isinstance(note, dict) else {}
    return Embedding(
        Pooling(given.get("pooling", default.pooling)),
        bool(given.get("normalize", default.normalize)),
    )


def _invalid(message: str) -> PackageError:
    return PackageError(message, "INVALID_ADAPTER_CONFIG")
