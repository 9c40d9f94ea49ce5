"""Fixtures for tests that need a server of their own."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def roomy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base` with a context of 4,096 tokens and a tokenizer that knows a token too many.

    And it makes no token of the character "␀". A stream of it can be made to last for seconds. The
    adapters of `tiny_base` fit.
    """
    from tokenizers import normalizers

    from tests.support.models import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("base") / "roomy"
    tiny_model("llama", vocab_size=259, max_position_embeddings=4096).save_pretrained(str(folder))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<beyond>"]})
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("␀", "")
    tokenizer.save_pretrained(str(folder))
    return folder
