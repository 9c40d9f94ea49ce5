"""What an adapter's own tokenizer has a name for, as a note of the package.

Trainers that teach a model to chat often end turns with another token than the base model, and say
so by `eos_token` in the `tokenizer_config.json` that they save beside the adapter.
"""

from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.added_tokens import MAX_TEXT
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import read_object

FILE = "tokenizer_config.json"
MAX_FILE_BYTES = 16 << 20
NAMES = ("bos_token", "eos_token", "unk_token")
"""Those that mean something for a text. One that pads, say, is in none."""


def special_tokens_beside(source: Path) -> dict[str, object]:
    """Return the note for what lies in the folder `source`; empty for none.

    Raises:
        PackageError: The file is malformed.
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
    """Demand that `note`, the note `special_tokens`, is well-formed; messages begin with `where`.

    Raises:
        PackageError: It is not.
    """
    for name, text in note.items():
        if name not in NAMES:
            raise _invalid(f"{where}: {shown(name)} is not known; known are {', '.join(NAMES)}")
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_TEXT:
            raise _invalid(
                f"{where}: {name} is {shown(text)}; expected a text of 1 to {MAX_TEXT} characters"
            )


def _invalid(message: str) -> PackageError:
    return PackageError(message, "INVALID_ADAPTER_CONFIG")
