"""Tokens that an adapter's tokenizer adds to the base model's, kept as a note of the package.

Of the `tokenizer.json` that trainers save beside an adapter, only `added_tokens` is kept; the rest
is the base model's. Format: https://github.com/huggingface/tokenizers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loramux_adapters.contents import Contents, EditKind
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import read_object

FILE = "tokenizer.json"
MAX_FILE_BYTES = 64 << 20
MAX_TOKENS = 1024
MAX_TEXT = 256
MAX_TEXTS = 32 << 10
"""Total characters of all tokens; bounded because every conversation is searched for them."""
MAX_ID = 1 << 31
_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the tokenizer matches as a whole; the fields are those of `tokenizer.json`."""

    id: int
    content: str
    special: bool = False
    """Whether it is a control token."""
    lstrip: bool = False
    """Whether it absorbs white space before it."""
    rstrip: bool = False
    """Whether it absorbs white space after it."""
    normalized: bool = False
    """Whether it is matched in normalized text."""
    single_word: bool = False
    """Whether it is matched only as a whole word."""


def added_tokens_of(source: Path, contents: Contents) -> list[dict[str, object]]:
    """Return the note for the adapter in the folder `source`; empty if it adds no tokens.

    An adapter that does not change embeddings has no tokens of its own. If it trained single rows
    of the embedding, the tokens of those rows are its own. Otherwise its own are among the last
    ones, which may include tokens of the base; those are told apart where the base is at hand.

    Raises:
        PackageError: `tokenizer.json` is malformed.
    """
    weights = [edit for edit in contents.edits if edit.parameter == "weight"]
    if not weights or not (source / FILE).exists():
        return []
    found = read_object(source, FILE, MAX_FILE_BYTES).get("added_tokens") or []
    if not isinstance(found, list):
        raise _malformed(FILE, found)
    tokens = sorted((_token(each, FILE) for each in found), key=lambda token: token.id)
    if all(edit.kind is EditKind.TOKENS for edit in weights):
        own = {token for edit in weights for token in edit.tokens}
        tokens = [token for token in tokens if token.id in own]
    return [_note(token) for token in tokens[-MAX_TOKENS:]]


def parse_added_tokens(note: Iterable[object], where: str) -> tuple[AddedToken, ...]:
    """Return the tokens of a note, sorted by id.

    Raises:
        PackageError: The note is malformed; the message begins with `where`.
    """
    tokens = tuple(_token(each, where) for each in note)
    if len(tokens) > MAX_TOKENS:
        raise PackageError(
            f"{where}: {len(tokens)} added tokens; the limit is {MAX_TOKENS}",
            "INVALID_ADAPTER_CONFIG",
        )
    if (size := sum(len(token.content) for token in tokens)) > MAX_TEXTS:
        raise PackageError(
            f"{where}: added tokens have {size} characters in total; the limit is {MAX_TEXTS}",
            "INVALID_ADAPTER_CONFIG",
        )
    for name in ("id", "content"):
        if len({getattr(token, name) for token in tokens}) < len(tokens):
            raise PackageError(
                f"{where}: two added tokens have the same {name}", "INVALID_ADAPTER_CONFIG"
            )
    return tuple(sorted(tokens, key=lambda token: token.id))


def _token(value: object, where: str) -> AddedToken:
    if not isinstance(value, dict):
        raise _malformed(where, value)
    number, content = value.get("id"), value.get("content")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(content, str):
        raise _malformed(where, value)
    flags = {name: value[name] for name in _FLAGS if name in value}
    is_bounded = 0 <= number < MAX_ID and 1 <= len(content) <= MAX_TEXT
    if not is_bounded or not all(isinstance(flag, bool) for flag in flags.values()):
        raise _malformed(where, value)
    return AddedToken(number, content, **flags)


def _note(token: AddedToken) -> dict[str, object]:
    flags: Mapping[str, bool] = {name: getattr(token, name) for name in _FLAGS}
    on = {name: flag for name, flag in flags.items() if flag}
    return {"id": token.id, "content": token.content, **on}


def _malformed(where: str, value: object) -> PackageError:
    return PackageError(
        f"{where}: added token {shown(value)} is not valid; expected an id from 0, a content of 1 "
        f"to {MAX_TEXT} characters, and true or false for {', '.join(_FLAGS)}",
        "INVALID_ADAPTER_CONFIG",
    )
