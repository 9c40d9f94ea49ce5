"""Anthropic's client, a real gateway and a real server: what comes is what gRPC gives."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from loramux import Client, Message
from tests.support.gateway import RunningGateway
from tests.support.server import RunningServer

ASKED: list[Any] = [{"role": "user", "content": "Who are you?"}]
TALK: list[Message] = [{"role": "system", "content": "Be brief."}, *ASKED]
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
MODELS = ["base", "plain", "public/plain:1", "strict"]
MESSAGES = "/v1/messages"


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, chat_server: RunningServer
) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), chat_server.target) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def direct(chat_server: RunningServer) -> Iterator[Client]:
    with chat_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Iterator[anthropic.Anthropic]:
    url = gateway.url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_a_message_is_what_grpc_gives(
    client: anthropic.Anthropic, direct: Client, model: str
) -> None:
    adapter = None if model == "base" else model
    wanted = direct.chat(TALK, adapter=adapter, max_tokens=12, **SAMPLED)
    options: dict[str, Any] = {
        "model": model, "messages": ASKED, "system": "Be brief.", "max_tokens": 12,
        "extra_body": SAMPLED,
    }  # fmt: skip
    found = client.messages.create(**options)
    assert [block.to_dict() for block in found.content] == [{"type": "text", "text": wanted.text}]
    assert (found.type, found.role, found.model) == ("message", "assistant", model)
    assert (found.stop_reason, found.stop_sequence) == ("max_tokens", None)
    usage = found.usage
    assert usage.output_tokens == wanted.usage.completion_tokens
    assert usage.cache_read_input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == wanted.usage.prompt_tokens
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == wanted.text
        last = stream.get_final_message()
    assert [block.to_dict() for block in last.content] == [{"type": "text", "text": wanted.text}]
    assert (last.stop_reason, last.usage.to_dict()) == ("max_tokens", usage.to_dict())
    del options["max_tokens"], options["extra_body"]
    assert client.messages.count_tokens(**options).input_tokens == wanted.usage.prompt_tokens


async def test_the_asynchronous_client_streams(gateway: RunningGateway, direct: Client) -> None:
    wanted = direct.chat(ASKED, max_tokens=6, temperature=0).text
    url = gateway.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=url, auth_token="none") as client:
        stream = client.messages.stream(
            model="base", messages=ASKED, max_tokens=6, extra_body={"temperature": 0}
        )
        async with stream as events:
            assert "".join([text async for text in events.text_stream]) == wanted


def test_an_answer_says_why_it_ended(client: anthropic.Anthropic, direct: Client) -> None:
    greedy: dict[str, Any] = {"model": "base", "messages": ASKED, "extra_body": {"temperature": 0}}
    text = direct.chat(ASKED, max_tokens=12, temperature=0).text
    stop = text[3:5]
    found = client.messages.create(max_tokens=12, stop_sequences=["never there", stop], **greedy)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", stop)
    form: Any = {"format": {"type": "json_schema", "schema": {"enum": ["x y"]}}}
    found = client.messages.create(max_tokens=12, output_config=form, **greedy)
    assert [block.to_dict()["text"] for block in found.content] == ['"x y"']
    assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)
    # As many as the context leaves room for, where more are asked for.
    length = direct.info().context_length
    for most in (length - 3, 1 << 40):
        with client.messages.stream(max_tokens=most, **greedy) as stream:
            last = stream.get_final_message()
        assert last.stop_reason == "model_context_window_exceeded"
        usage = last.usage
        used = usage.input_tokens + (usage.cache_read_input_tokens or 0) + usage.output_tokens
        assert used == length


def test_models_are_listed_for_both_apis(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    found = {model.id: model for model in client.models.list()}
    assert {"base", "plain", "own", "strict"} <= set(found)
    assert found["plain"].type == "model"
    assert client.models.retrieve("plain").created_at == found["plain"].created_at
    assert gateway.get("/v1/models").json["object"] == "list"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody")


def test_what_agents_send_is_taken(gateway: RunningGateway) -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        "model": "base", "max_tokens": 2, "stream": True, "temperature": 1,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=0a1b2;"},
            {"type": "text", "text": "Be brief.", **cached},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", **cached}]},
            {"role": "system", "content": "It is Monday."},
        ],
        "tools": [
            {"name": "Read", "description": "Reads", "input_schema": {"type": "object"},
             "eager_input_streaming": True, **cached}
        ],
        "tool_choice": {"type": "none"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": json.dumps({"device_id": "a" * 64, "session_id": "b" * 36})},
    }  # fmt: skip
    found = gateway.post(
        f"{MESSAGES}?beta=true", body,
        anthropic_version="2023-06-01", anthropic_beta="context-management-2025-06-27",
    )  # fmt: skip
    assert found.status == 200, found.body
    names = [line[7:] for line in found.body.decode().splitlines() if line.startswith("event: ")]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    del body["stream"], body["max_tokens"], body["temperature"], body["metadata"]
    assert gateway.post(f"{MESSAGES}/count_tokens", body).json["input_tokens"] > 0


def test_errors_have_anthropics_form(client: anthropic.Anthropic, gateway: RunningGateway) -> None:
    options: dict[str, Any] = {"max_tokens": 2, "messages": ASKED}
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nobody", **options)
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    with pytest.raises(anthropic.BadRequestError, match="temperature is -1") as wrong:
        client.messages.create(model="base", extra_body={"temperature": -1}, **options)
    assert wrong.value.type == "invalid_request_error"
    tools: Any = [{"type": "web_search_20250305", "name": "web_search"}]
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].type is 'web_search_"):
        client.messages.create(model="base", tools=tools, **options)
    for body, status, kind in (
        (b"{", 400, "invalid_request_error"),
        (b" " * ((4 << 20) + 1), 413, "request_too_large"),
    ):
        found = gateway.post(MESSAGES, body)
        assert (found.status, found.error["type"]) == (status, kind)
        assert found.json["request_id"] == found.headers["request-id"]
    assert gateway.get(MESSAGES).json["type"] == "error"
    assert gateway.get(f"{MESSAGES}/batches").error["type"] == "not_found_error"
    assert not gateway.log.read_text()
