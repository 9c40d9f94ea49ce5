"""How a base model takes text: its tokenizer, and the template that makes a prompt of a chat."""

import logging
from dataclasses import dataclass, field

from transformers import AutoTokenizer

from loramux_server.models.base_embedding import BaseEmbedding, read_embedding
from loramux_server.text.pieces.making import make_tokenizer_of


@dataclass(frozen=True, slots=True)
class TextFormat:
    """What the folder of a base model says about text."""

    tokenizer_json: str | None = None
    """The tokenizer in the format of the tokenizers library; None where the base has none."""
    chat_template: str | None = None
    """Its chat template; None where the base has none."""
    special_tokens: dict[str, str] = field(default_factory=dict)
    """What a template may name, such as `bos_token` -> the text of the token."""
    has_token_types: bool = False
    """Whether the tokenizer tells which tokens are of the second of two texts."""
    embedding: BaseEmbedding = field(default_factory=BaseEmbedding)
    """How one vector is made of a text."""


WITHOUT_TEXT = TextFormat()

_log = logging.getLogger(__name__)


def read_text_format(path: str) -> TextFormat:
    """Return what the folder or hub id `path` says; if it holds no tokenizer, of vectors alone."""
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
    # Some classes ask for files of a vocabulary without looking whether there are any.
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return TextFormat(embedding=embedding)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return TextFormat(embedding=embedding)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    return TextFormat(
        str(backend.to_str()),
        template or None,
        dict(tokenizer.special_tokens_map),
        has_token_types="token_type_ids" in tokenizer.model_input_names,
        embedding=embedding,
    )
