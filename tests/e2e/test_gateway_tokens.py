"""`/tokenize` and `/detokenize` of the gateway, as vLLM has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.gateway import Answer, RunningGateway
from tests.support.server import RunningServer

MESSAGES = [{"role": "user", "content": "héllo"}]


@pytest.fixture(scope="module")
def gateway(
    chat_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), chat_server.target) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def tokenizer(chat_folders: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(str(chat_folders["base"]))


def tokenized(gateway: RunningGateway, **body: Any) -> Answer:
    return gateway.post("/tokenize", body)


def test_a_text_becomes_the_tokens_of_the_tokenizer_and_back(
    gateway: RunningGateway, tokenizer: Any
) -> None:
    found = tokenized(gateway, model="base", prompt="héllo", return_token_strs=True).json
    assert found["tokens"] == tokenizer("héllo").input_ids
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 512
    assert "".join(found["token_strs"]).replace("\ufffd", "").endswith("llo")
    plain = tokenized(gateway, prompt="héllo", add_special_tokens=False).json
    assert plain["tokens"] == tokenizer("héllo", add_special_tokens=False).input_ids
    assert plain["token_strs"] is None
    back = gateway.post("/detokenize", {"model": "base", "tokens": plain["tokens"]})
    assert back.json == {"prompt": "héllo"}
    assert gateway.post("/detokenize", {"tokens": []}).json == {"prompt": ""}


@pytest.mark.parametrize("begins", [True, False])
def test_messages_become_the_tokens_of_the_template(
    gateway: RunningGateway, tokenizer: Any, begins: bool
) -> None:
    expected = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=begins, tokenize=True, return_dict=False
    )
    body = {"model": "base", "messages": MESSAGES, "add_generation_prompt": begins}
    assert tokenized(gateway, **body).json["tokens"] == expected
    if begins:
        own = tokenized(gateway, **body | {"model": "own"})
        assert own.json["tokens"] != expected  # the adapter's template
        chat = gateway.post("/v1/chat/completions", body | {"max_tokens": 1})
        assert chat.json["usage"]["prompt_tokens"] == len(expected)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"model": "nobody", "prompt": "x"}, 404, "model"),
        ("/tokenize", {"model": "base"}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "chat_template_kwargs": {}}, 400, "chat_template_kwargs"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, 400,
         "add_special_tokens"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "prompts": 1}, 400, "prompts"),
        ("/detokenize", {"model": "base"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, 1 << 70]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "nobody"}, 404, "model"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    gateway: RunningGateway, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    found = gateway.post(path, body)
    assert (found.status, (found.error["param"] or "").partition("[")[0]) == (status, param), (
        found.body
    )
