"""Files that trainers save beside an adapter and that become notes of its package."""

from collections.abc import Collection
from pathlib import Path

from loramux_adapters.embedding import Embedding, Pooling, embedding_of
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import read_bounded, read_object
from loramux_adapters.generation_config import FILE as GENERATION_FILE
from loramux_adapters.generation_config import MAX_BYTES as MAX_GENERATION_BYTES
from loramux_adapters.generation_config import defaults_of
from loramux_adapters.head import FEATURES
from loramux_adapters.labels import CONFIG_FILE as MODEL_FILE
from loramux_adapters.manifest import MAX_TEMPLATE_BYTES
from loramux_adapters.sentence_transformers import FILES as SENTENCE_FILES
from loramux_adapters.sentence_transformers import embedding_from_folder
from loramux_adapters.special_tokens import FILE as TOKENIZER_FILE
from loramux_adapters.special_tokens import MAX_FILE_BYTES as MAX_TOKENIZER_BYTES
from loramux_adapters.special_tokens import special_tokens_from_folder

TEMPLATE_FILE = "chat_template.jinja"
SIDECAR_FILES = (TEMPLATE_FILE, TOKENIZER_FILE, GENERATION_FILE, MODEL_FILE, *SENTENCE_FILES)
"""All files that are read."""


def sidecar_notes(
    source: Path, but: Collection[str] = (), *, task: object = None
) -> dict[str, object]:
    """Return the notes that files in the folder `source` give, except those in `but`.

    `task` is PEFT's `task_type` of the adapter.

    Raises:
        PackageError: A file is malformed or asks for something that is not supported.
    """
    notes: dict[str, object] = {}
    if "chat_template" not in but and (template := read_template(source)) is not None:
        notes["chat_template"] = template
    if "special_tokens" not in but and (special := special_tokens_from_folder(source)):
        notes["special_tokens"] = special
    if "generation" not in but and (source / GENERATION_FILE).exists():
        defaults = defaults_of(read_object(source, GENERATION_FILE, MAX_GENERATION_BYTES))
        if defaults:
            notes["generation"] = defaults
    if "embedding" not in but:
        embedding = embedding_from_folder(source)
        if embedding:
            notes["embedding"] = embedding
        if embedding or task == FEATURES:
            _check_end(source, embedding_of(notes.get("embedding")))
    return notes


def _check_end(source: Path, embedding: Embedding) -> None:
    """Check that embeddings do not depend on an EOS token that only the adapter's tokenizer adds.

    Raises:
        PackageError: The tokenizer adds EOS, and the pooling reads the last or all tokens.
    """
    if embedding.pooling is Pooling.FIRST or not (source / TOKENIZER_FILE).exists():
        return
    if read_object(source, TOKENIZER_FILE, MAX_TOKENIZER_BYTES).get("add_eos_token") is True:
        raise PackageError(
            f"{TOKENIZER_FILE}: add_eos_token is true, but texts are tokenized by the base model's "
            "tokenizer. If that or the callers append the same token, confirm it by setting the "
            f"pooling, {shown(str(embedding.pooling))}: --pooling of loramux pack, or embedding in "
            "loramux.json",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )


def read_template(source: Path) -> str | None:
    """Return the chat template in the folder `source`; None if there is none.

    Raises:
        PackageError: It cannot be read.
    """
    if (source / TEMPLATE_FILE).exists():
        raw = read_bounded(source, TEMPLATE_FILE, MAX_TEMPLATE_BYTES)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise PackageError(f"{TEMPLATE_FILE} is not UTF-8", "INVALID_ADAPTER_CONFIG") from None
    if not (source / TOKENIZER_FILE).exists():
        return None
    config = read_object(source, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
    return _template_in(config.get("chat_template"))


def _template_in(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):  # several, by name
        for entry in value:
            match entry:
                case {"name": "default", "template": str(template)}:
                    return template
    raise PackageError(
        f"{TOKENIZER_FILE}: chat_template is {shown(value)}; expected a template, or a list with "
        "one named 'default'",
        "INVALID_ADAPTER_CONFIG",
    )
