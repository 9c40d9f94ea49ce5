"""How a base model takes text: its tokenizer and its chat template."""

import logging
from dataclasses import dataclass, field

from transformers import AutoTokenizer

from loramux_server.models.base_embedding import BaseEmbedding, read_embedding
from loramux_server.text.pieces.build import make_tokenizer_of


@dataclass(frozen=True, slots=True)
class TextFormat:
    """What the folder of a base model says about text."""

    tokenizer_json: str | None = None
    """The tokenizer in the format of the tokenizers library; None where the base has none."""
    chat_template: str | None = None
    """Its chat template; None where the base has none."""
    special_tokens: dict[str, str] = field(default_factory=dict)
    """Names that a template may use, such as `bos_token` -> the text of the token."""
    has_token_types: bool = False
    """Whether the tokenizer returns token type ids for the second text of a pair."""
    embedding: BaseEmbedding = field(default_factory=BaseEmbedding)
    """How texts are embedded."""


WITHOUT_TEXT = TextFormat()

_log = logging.getLogger(__name__)


def read_text_format(path: str) -> TextFormat:
    """Return what the folder or hub id `path` says; without a tokenizer, only about embeddings."""
    embedding = read_embedding(path)
    try:
        made = make_tokenizer_of(path)
    except OSError:
        made = None
    except ValueError as error:
        _log.warning("%s has no usable tokenizer and accepts only token ids: %s", path, error)
        return TextFormat(embedding=embedding)
    if made is not None:
        return TextFormat(*made, embedding=embedding)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    # Some classes request vocabulary files without checking that they exist.
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return TextFormat(embedding=embedding)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return TextFormat(embedding=embedding)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates, by name
        template = template.get("default")
    return TextFormat(
        str(backend.to_str()),
        template or None,
        dict(tokenizer.special_tokens_map),
        has_token_types="token_type_ids" in tokenizer.model_input_names,
        embedding=embedding,
    )
