"""Prompts as tokens, tokens as text, over the real socket: as transformers has them."""

from pathlib import Path
from typing import Any

import pytest

from loramux import AsyncClient, Client, Message
from loramux.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from loramux_server.access.access_file import append_key
from loramux_server.access.caller import Role
from loramux_server.access.key import new_key
from loramux_server.access.key_manager import new_record
from tests.support.fake_server import FakeServer
from tests.support.server import RunningServer
from tests.support.templates import CHATML, HEADERS, chat_tokenizer

TEXT = "Qui êtes-vous ? 🦙"
TALK: list[Message] = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": TEXT},
]


@pytest.fixture
def tokenizer() -> Any:
    return chat_tokenizer()


@pytest.fixture(scope="module")
def server(chat_server: RunningServer) -> RunningServer:
    return chat_server


@pytest.mark.parametrize(
    ("adapter", "template"), [(None, CHATML), ("plain", CHATML), ("own", HEADERS)]
)
def test_messages_become_the_tokens_of_the_template(
    client: Client, tokenizer: Any, adapter: str | None, template: str
) -> None:
    for begins in (True, False):
        wanted = tokenizer.apply_chat_template(
            TALK, chat_template=template, add_generation_prompt=begins, return_dict=False
        )
        found = client.tokenize(
            messages=TALK, adapter=adapter, add_generation_prompt=begins, pieces=True
        )
        assert found.ids == tuple(wanted)
        assert b"".join(found.pieces).decode() == tokenizer.decode(wanted)
    assert found.context_length == client.info().context_length
    assert (found.adapter.name if found.adapter else None) == adapter
    asked = client.generate(messages=TALK, adapter=adapter, max_tokens=1)
    assert len(client.tokenize(messages=TALK, adapter=adapter)) == asked.usage.prompt_tokens


@pytest.mark.parametrize("adds", [True, False])
def test_text_comes_back(client: Client, tokenizer: Any, adds: bool) -> None:
    found = client.tokenize(TEXT, add_special_tokens=adds)
    assert found.ids == tuple(tokenizer(TEXT, add_special_tokens=adds).input_ids)
    assert found.pieces == ()
    assert client.detokenize(found.ids, skip_special_tokens=True) == TEXT
    assert client.detokenize(found.ids) == tokenizer.decode(found.ids)


def test_control_tokens_have_names_or_are_left_out(client: Client, tokenizer: Any) -> None:
    ids = [tokenizer.eos_token_id, *tokenizer("a", add_special_tokens=False).input_ids]
    assert client.detokenize(ids) == tokenizer.eos_token + "a"
    assert client.detokenize(ids, skip_special_tokens=True) == "a"


def test_a_prompt_may_be_longer_than_the_context(client: Client) -> None:
    most = client.info().context_length
    found = client.tokenize("a" * (most + 5), add_special_tokens=False)
    assert len(found) > most
    with pytest.raises(InvalidArgumentError, match=f"token_ids has {len(found)} tokens; expected"):
        client.detokenize(found.ids)


def test_what_cannot_be_is_named(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="prompt") as caught:
        client.tokenize("")
    with pytest.raises(InvalidArgumentError, match=r"token_ids holds token 9999"):
        client.detokenize([5, 9999])
    with pytest.raises(NotFoundError, match="nobody"):
        client.tokenize("a", adapter="nobody")
    with pytest.raises(NotFoundError, match="nobody"):
        client.detokenize([5], adapter="nobody")
    assert caught.value.field == "prompt"


async def test_the_asynchronous_client_has_both(server: RunningServer) -> None:
    async with AsyncClient(server.target) as client:
        found = await client.tokenize("hello", add_special_tokens=False)
        assert await client.detokenize(found.ids) == "hello"


def test_tokens_become_text_within_the_quota_of_requests(tmp_path: Path) -> None:
    key, access = new_key(), tmp_path / "access.toml"
    access.write_text("[tenants.acme]\nrequests_per_second = 0.01\n")
    append_key(access, new_record(key.id, key.sha256, tenant="acme", role=Role.USER))
    with (
        FakeServer(tmp_path, "--access", str(access)) as server,
        server.client(key=key.text) as client,
    ):
        with pytest.raises(InvalidArgumentError, match="no tokenizer"):
            client.detokenize([5])
        with pytest.raises(ResourceExhaustedError, match=r"0\.01 requests per second"):
            client.detokenize([5])
