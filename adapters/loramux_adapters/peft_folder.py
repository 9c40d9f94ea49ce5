"""Reading the folder that PEFT's `save_pretrained` writes, without validating the adapter."""

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from loramux_adapters.errors import PackageError
from loramux_adapters.files import open_regular, pickle_hint, read_object
from loramux_adapters.manifest import check_notes
from loramux_adapters.sidecar_files import sidecar_notes
from loramux_adapters.tensorfile import PACKAGE

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
MAX_CONFIG_BYTES = 64 << 10
MODEL_CONFIG_FILE = "config.json"
MODEL_WEIGHT_FILES = frozenset({"model.safetensors", "model.safetensors.index.json"})
"""Files in which transformers saves a whole model."""
MAX_ENTRIES = 1000
"""Entries that are looked at in a folder that is not an adapter."""
_NUM_NAMED = 3
NOTES_FILE = "loramux.json"
"""Notes for the manifest, in a file beside PEFT's."""
MAX_NOTES_BYTES = PACKAGE.num_bytes


def is_peft_folder(path: Path) -> bool:
    """Return whether `path` looks like a folder that PEFT's `save_pretrained` wrote."""
    return (path / CONFIG_FILE).is_file()


def read_config(source: Path) -> dict[str, object]:
    """Return the config in the PEFT folder `source`, parsed but not validated.

    Raises:
        PackageError: There is none, or it is not a JSON object.
    """
    try:
        return read_object(source, CONFIG_FILE, MAX_CONFIG_BYTES)
    except PackageError as error:
        hint = folder_hint(source)
        if not hint:
            raise
        raise PackageError(f"{error}; {hint}", error.reason) from None


def folder_hint(source: Path) -> str:
    """Return a hint at what `source`, a folder without a config, is; empty if unknown."""
    try:
        if not source.is_dir() or is_peft_folder(source):
            return ""
        entries = sorted(itertools.islice(source.iterdir(), MAX_ENTRIES))
        adapters = [entry.name for entry in entries if is_peft_folder(entry)]
    except OSError:
        return ""
    if adapters:
        rest = len(adapters) - _NUM_NAMED
        named = ", ".join(adapters[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
        are = "subfolder {} is an adapter" if len(adapters) == 1 else "subfolders {} are adapters"
        return f"its {are.format(named)}"
    names = {entry.name for entry in entries}
    if MODEL_CONFIG_FILE in names and names & MODEL_WEIGHT_FILES:
        return "it is a whole model, for --model: save the adapter before it is merged"
    return ""


def read_notes(
    source: Path, notes: Mapping[str, object | None] | None = None, *, but: Collection[str] = ()
) -> Mapping[str, object]:
    """Return the notes for the adapter in the folder `source`.

    `notes` override those of `loramux.json`, and these override the notes from other files in the
    folder, except those in `but`. None in `notes` removes a note.

    Raises:
        PackageError: They are malformed.
    """
    noted: Mapping[str, object] = {}
    if (source / NOTES_FILE).exists():
        noted = check_notes(read_object(source, NOTES_FILE, MAX_NOTES_BYTES), NOTES_FILE)
    given = {**noted, **(notes or {})}
    task = read_config(source).get("task_type")
    found = {**sidecar_notes(source, {*given, *but}, task=task), **given}
    return check_notes({n: note for n, note in found.items() if note is not None}, str(source))


def open_tensors(source: Path) -> BinaryIO:
    """Open the tensor file of the PEFT folder `source`.

    Raises:
        PackageError: There is none, or it cannot be read.
    """
    path = source / TENSOR_FILE
    try:
        return open_regular(path)
    except OSError as error:
        hint = ""
        if (source / PICKLE_FILE).exists():
            hint = f"; {pickle_hint(source, PICKLE_FILE)}"
        raise PackageError(
            f"{source} has no readable {TENSOR_FILE} ({error.strerror}){hint}"
        ) from None
