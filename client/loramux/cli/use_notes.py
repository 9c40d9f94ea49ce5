"""Options of `loramux pack` -> notes on how an adapter is used."""

import json
from collections.abc import Iterable
from pathlib import Path

from loramux_adapters import PackageError
from loramux_adapters.embedding import Pooling
from loramux_adapters.errors import shown
from loramux_adapters.files import read_bounded, read_object
from loramux_adapters.generation import LISTS, check_generation
from loramux_adapters.generation_config import MAX_BYTES, defaults_of
from loramux_adapters.labels import ProblemType, check_labels, labels_from_folder
from loramux_adapters.manifest import MAX_TEMPLATE_BYTES
from loramux_adapters.sentence_transformers import embedding_from_folder

NONE = "none"
"""Value that omits what a folder has, in place of a file."""


def use_notes(
    chat_template: str | None, generation_config: str | None, defaults: Iterable[str]
) -> dict[str, object]:
    """Return the notes that the options give; None for one to omit.

    Raises:
        PackageError: A file or a default is malformed.
    """
    notes: dict[str, object] = {}
    if chat_template == NONE:
        notes["chat_template"] = None
    elif chat_template:
        path = Path(chat_template)
        raw = read_bounded(path.parent, path.name, MAX_TEMPLATE_BYTES)
        try:
            notes["chat_template"] = raw.decode()
        except UnicodeDecodeError:
            raise PackageError(f"{path} is not UTF-8", "INVALID_ADAPTER_CONFIG") from None
    found: dict[str, object] = {}
    if generation_config not in (None, NONE):
        path = Path(str(generation_config))
        found = defaults_of(read_object(path.parent, path.name, MAX_BYTES))
    for text in defaults:
        name, value = _parsed(text)
        if name in LISTS:
            before = found.get(name)
            found[name] = [*(before if isinstance(before, list) else []), value]
        else:
            found[name] = value
    if found:
        notes["generation"] = check_generation(found, "--default")
    elif generation_config == NONE:
        notes["generation"] = None
    return notes


def label_notes(
    source: Path, labels: str | None, problem_type: ProblemType | None
) -> dict[str, object]:
    """Return the note for labels that the options give, completed from the folder `source`.

    Empty if there are no such options.

    Raises:
        PackageError: They or the folder's files are malformed.
    """
    given: dict[str, object] = {}
    if labels is not None:
        given["labels"] = labels.split(",")
    if problem_type is not None:
        given["problem_type"] = str(problem_type)
    if not given:
        return {}
    check_labels(given, "--labels")
    return {"classification": {**labels_from_folder(source), **given}}


def embedding_notes(source: Path, pooling: Pooling | None) -> dict[str, object]:
    """Return the note for embeddings with `pooling`, completed from the folder `source`.

    Empty without `pooling`.

    Raises:
        PackageError: The folder's files are malformed.
    """
    if pooling is None:
        return {}
    return {"embedding": embedding_from_folder(source, pooling)}


def _parsed(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise PackageError(f"--default {shown(text)} is not FIELD=VALUE", "INVALID_FIELD")
    if name == "stop":
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
