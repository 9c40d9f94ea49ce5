"""Special tokens of an adapter's tokenizer, as a note of the package.

Chat fine-tunes often end turns with another token than the base model, and say so by `eos_token` in
the `tokenizer_config.json` that trainers save beside the adapter.
"""

from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.added_tokens import MAX_TEXT
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import read_object

FILE = "tokenizer_config.json"
MAX_FILE_BYTES = 16 << 20
NAMES = ("bos_token", "eos_token", "unk_token")
"""Those that can occur in a text, unlike the padding token."""


def special_tokens_from_folder(source: Path) -> dict[str, object]:
    """Return the note for the folder `source`; empty if it names no special tokens.

    Raises:
        PackageError: `tokenizer_config.json` is malformed.
    """
    if not (source / FILE).exists():
        return {}
    config = read_object(source, FILE, MAX_FILE_BYTES)
    found: dict[str, object] = {}
    for name in NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and text != "":
            found[name] = text
    check_special_tokens(found, FILE)
    return found


def check_special_tokens(note: Mapping[str, object], where: str) -> None:
    """Validate `note`, the note `special_tokens`; messages begin with `where`.

    Raises:
        PackageError: It is malformed.
    """
    for name, text in note.items():
        if name not in NAMES:
            raise _invalid(
                f"{where}: {shown(name)} is not a known key; expected one of {', '.join(NAMES)}"
            )
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_TEXT:
            raise _invalid(f"{where}: {name} is {shown(text)}; expected 1 to {MAX_TEXT} characters")


def _invalid(message: str) -> PackageError:
    return PackageError(message, "INVALID_ADAPTER_CONFIG")
