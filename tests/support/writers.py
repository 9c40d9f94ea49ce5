"""Tiny models with an encoder and a decoder, and tokenizers as hubs have them beside such."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.support.encoder_models import save_encoder_base
from tests.support.models import byte_tokenizer

END = 2
LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn")
SIZE = 264
"""Tokens of the models, two more than of the larger tokenizer."""


def ending_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that ends a text as T5's does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Return one that says in which language a text is, as NLLB's does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(LANGUAGES)})
    english = tokenizer.convert_tokens_to_ids(LANGUAGES[0])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{LANGUAGES[0]} $A </s>", special_tokens=[(LANGUAGES[0], english), ("</s>", END)]
    )
    return tokenizer


def save_writer(
    name: str, folder: Path, tokenizer: PreTrainedTokenizerFast, **generation: Any
) -> Path:
    """Save a model of the kind `name` with a tokenizer, and fields of its generation config."""
    save_encoder_base(name, folder, vocab_size=SIZE, eos_token_id=END)
    tokenizer.save_pretrained(str(folder))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return folder


@torch.inference_mode()
def generated(
    model: torch.nn.Module, source: Sequence[int], num_tokens: int, **options: Any
) -> list[list[int]]:
    """Return what transformers writes to `source`, the decoder's first token left out."""
    ids = torch.tensor([list(source)])
    found: Any = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens,
        do_sample=False, **options,
    )  # fmt: skip
    return [row[1:] for row in getattr(found, "sequences", found).tolist()]
