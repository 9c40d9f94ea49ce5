"""Fixtures for tests that need a server of their own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import openai

    from loramux import Client
    from tests.support.heads import Served
    from tests.support.observed import Observed
    from tests.support.server import RunningServer

DEFAULTS: dict[str, Any] = {
    "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 5000, "max_new_tokens": 4,
    "stop_strings": ["\u0001"], "eos_token_id": [7, 9], "repetition_penalty": 1.25,
    "transformers_version": "5.23.0",
}  # fmt: skip
"""Generation defaults of the adapter `own` of `chat_server`."""


@pytest.fixture(scope="module")
def client(server: "RunningServer") -> "Iterator[Client]":
    """A client of the `server` that a file of tests has."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(
    server: "RunningServer", tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[openai.OpenAI]":
    """OpenAI's client of a gateway in front of that server."""
    import openai

    from tests.support.gateway import RunningGateway

    with (
        RunningGateway(tmp_path_factory.mktemp("gateway"), server.target) as gateway,
        openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def roomy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base` with a context of 131,072 tokens and a tokenizer that knows a token too many.

    And it makes no token of the character "␀". A stream of it can be made to last for seconds. The
    adapters of `tiny_base` fit.
    """
    from tokenizers import normalizers

    from tests.support.models import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("base") / "roomy"
    tiny_model("llama", vocab_size=259, max_position_embeddings=1 << 17).save_pretrained(
        str(folder)
    )
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


@pytest.fixture(scope="session")
def chat_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model with a chat template, and PEFT folders for it: one `own` has another."""
    from tests.support.adapters import save_adapter
    from tests.support.models import tiny_model
    from tests.support.templates import CHATML, HEADERS, INSTRUCTIONS, chat_tokenizer

    folder = tmp_path_factory.mktemp("chat")
    tokenizer = chat_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(str(folder / "base"))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(folder / "base"))
    for seed, name in enumerate(("plain", "own", "strict")):
        save_adapter(model, folder / name, seed=seed, r=4, target_modules=["q_proj", "v_proj"])
    (folder / "own" / "chat_template.jinja").write_text(HEADERS)
    (folder / "own" / "generation_config.json").write_text(json.dumps(DEFAULTS))
    (folder / "strict" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": INSTRUCTIONS})
    )
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def chat_server(
    tmp_path_factory: pytest.TempPathFactory, chat_folders: dict[str, Path]
) -> "Iterator[RunningServer]":
    """A server of `chat_folders`."""
    from tests.support.server import RunningServer

    folder = tmp_path_factory.mktemp("server")
    for name in ("plain", "own", "strict"):
        shutil.copytree(chat_folders[name], folder / "adapters" / name)
    arguments = ("--adapters", str(folder / "adapters"))
    with RunningServer(folder, chat_folders["base"], *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def served_heads(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """A server of the demo's base, with adapters that have heads beside those that write."""
    from tests.support.heads import serving_heads

    folders = (tmp_path_factory.mktemp(name) for name in ("heads", "server"))
    with serving_heads(*folders) as served:
        yield served
