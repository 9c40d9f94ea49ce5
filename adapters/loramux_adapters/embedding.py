"""How an adapter makes one vector of a text.

A package notes it as `embedding`, since PEFT does not save it.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.errors import PackageError, shown


class Pooling(enum.StrEnum):
    """How the last hidden states of a text become one vector."""

    LAST = "last"
    """That of the last token."""
    MEAN = "mean"
    """The mean of those of all tokens."""
    FIRST = "first"
    """That of the first token."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """What a package says of it; the defaults are those of packages that say nothing."""

    pooling: Pooling = Pooling.LAST
    normalize: bool = True
    """Whether vectors have length 1."""


DEFAULT = Embedding()


def check_embedding(note: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Return `note`, the note `embedding`, if it is well-formed; messages begin with `where`.

    Raises:
        PackageError: It is not.
    """
    for name, value in note.items():
        if name not in ("pooling", "normalize"):
            raise _invalid(f"{where}: {shown(name)} is not known; known are pooling, normalize")
        if name == "normalize" and type(value) is not bool:
            raise _invalid(f"{where}: normalize is {shown(value)}, not true or false")
        if name == "pooling" and (not isinstance(value, str) or value not in set(Pooling)):
            known = ", ".join(Pooling)
            raise _invalid(f"{where}: pooling is {shown(value)}; expected one of {known}")
    return note


def embedding_of(note: object, default: Embedding = DEFAULT) -> Embedding:
    """Return what the note `embedding`, which has been checked, says, and of the rest `default`."""
    given = note if isinstance(note, dict) else {}
    return Embedding(
        Pooling(given.get("pooling", default.pooling)),
        bool(given.get("normalize", default.normalize)),
    )


def _invalid(message: str) -> PackageError:
    return PackageError(message, "INVALID_ADAPTER_CONFIG")
