"""Fixtures for tests that need a server of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.observed import Observed


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


@pytest.fixture(scope="session")
def observed(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> "Iterator[Observed]":
    """A server of `tiny_base` with keys, whose logs and traces are kept."""
    from tests.support.observed import observed_server, write_damaged_entry

    folder = tmp_path_factory.mktemp("observed")
    adapters = shutil.copytree(tiny_adapters, folder / "adapters")
    write_damaged_entry(adapters)
    with observed_server(folder, tiny_base, "--adapters", str(adapters)) as observed:
        yield observed
