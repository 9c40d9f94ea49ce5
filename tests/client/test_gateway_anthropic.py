"""Anthropic's Messages API: what becomes of a request, and how answers and errors look."""

import base64
import json
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loramux import errors
from loramux.errors import InvalidArgumentError, LoramuxError
from loramux.gateway.anthropic.answer import PING_SECONDS, Answer
from loramux.gateway.anthropic.body import UNSUPPORTED, MessagesBody
from loramux.gateway.anthropic.counting import Counting
from loramux.gateway.anthropic.fitting import Fitting
from loramux.gateway.anthropic.grpc_requests import messages_request
from loramux.gateway.anthropic.merged_messages import MergedMessages
from loramux.gateway.anthropic.names import MessageNames
from loramux.gateway.anthropic.refusal import refusal
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.parsing import parse
from loramux.v1 import generation_pb2, tokenization_pb2

PNG = b"\x89PNG a cat"
IMAGE: dict[str, Any] = {
    "type": "image",
    "source": {
        "type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode(),
    },
}  # fmt: skip
TOOL: dict[str, Any] = {"name": "weather", "input_schema": {"type": "object"}}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def call(name: str = "weather", number: str = "1") -> dict[str, Any]:
    return {"type": "tool_use", "id": number, "name": name, "input": {"city": "Oslo"}}


def result(content: Any = "3", number: str = "1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": number, "content": content, **more}


def asked(**given: Any) -> tuple[generation_pb2.GenerateRequest, MergedMessages]:
    body = {"model": "bot", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    found = parse(json.dumps(body | given).encode(), MessagesBody, UNSUPPORTED)
    turns = MergedMessages(found)
    return messages_request(found, turns, "base"), turns


def said(messages: list[dict[str, Any]], **more: Any) -> list[tuple[str, ...]]:
    """Return role and content of what the server is given, and what else a message has."""
    request, _ = asked(messages=messages, **more)
    return [
        (
            each.role,
            each.content or "".join(part.text or "<image>" for part in each.parts),
            *filter(None, (each.reasoning, each.tool_call_id)),
            *(f"{made.id} {made.name} {made.arguments}" for made in each.tool_calls),
        )
        for each in request.messages
    ]


ASSISTANT = {
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        text("Let me look."),
        call(),
    ],
}
MADE = ("assistant", "Let me look.", "Hm.", '1 weather {"city":"Oslo"}')


def test_blocks_become_messages_of_a_chat() -> None:
    blocks = [text("See"), IMAGE, text("this", cache_control={"type": "ephemeral"}), text("cat")]
    assert said([user(*blocks), ASSISTANT, user(result(), text("So?"))], system="Be brief.") == [
        ("system", "Be brief."),
        ("user", "See<image>this\n\ncat"),
        MADE,
        ("tool", "3", "1"),
        ("user", "So?"),
    ]


def test_a_null_in_a_block_is_the_same_as_no_field() -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": None}
    turn = {"role": "assistant", "content": [thinking, text("Oh", citations=None)]}
    assert said([user(text("Hi")), turn, user(text("So?"))])[1] == ("assistant", "Oh", "Hm.")


def test_results_are_texts_or_images_and_say_that_a_call_failed() -> None:
    results = [
        result([text("a"), text("b"), IMAGE], "1"), result("lost", "2", is_error=True),
        result(None, "3"), result([IMAGE], "4", is_error=True),
    ]  # fmt: skip
    assert said([user(text("Hi")), ASSISTANT, user(*results)])[2:] == [
        ("tool", "a\n\nb<image>", "1"),
        ("tool", "Error: lost", "2"),
        ("tool", "", "3"),
        ("tool", "Error: <image>", "4"),
    ]


def test_turns_of_one_role_in_a_row_are_one() -> None:
    answer = {"role": "assistant", "content": [call(number="2")]}
    assert said([user(text("a")), user(text("b")), ASSISTANT, answer, user(result())]) == [
        ("user", "a\n\nb"),
        (*MADE, '2 weather {"city":"Oslo"}'),
        ("tool", "3", "1"),
    ]


def test_instructions_between_messages_are_part_of_the_one_before() -> None:
    one, two = ({"role": "system", "content": [text(each)]} for each in "12")
    talk = {"role": "assistant", "content": "Ho"}
    system: list[Any] = [text("x-anthropic-billing-header: cch=a1b2;"), text("Be brief.")]
    found = said([one, user(text("Hi")), two, talk, one, user(text("So?"))], system=system)
    assert found == [
        ("system", "Be brief.\n\n1"),
        ("user", "Hi\n\n2"),
        ("assistant", "Ho"),
        ("user", "1\n\nSo?"),
    ]
    assert said([user(text("Hi")), ASSISTANT, one, user(result()), two])[2:] == [
        ("tool", "3\n\n1\n\n2", "1")
    ]
    assert said([user(text("Hi")), talk, one])[2:] == [("user", "1")]


def test_fields_have_those_of_the_server() -> None:
    request, _ = asked(
        temperature=0.5, top_p=0.9, top_k=7, seed=3, stop_sequences=["."],
        metadata={"user_id": "me"}, thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"a": 1}}},
        tools=[TOOL | {"description": "Of a city", "strict": True, "type": "custom"}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True}, service_tier="auto",
        chat_template_kwargs={"thinking": "much"},
    )  # fmt: skip
    sampling = request.sampling
    assert (sampling.temperature, round(sampling.top_p, 3), sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.seed, list(sampling.stop), sampling.max_tokens) == (3, ["."], 5)
    assert json.loads(sampling.structured_output.json_schema) == {"a": 1}
    assert (request.adapter, request.routing_key) == ("bot", "me")
    assert json.loads(request.chat_template_kwargs) == {
        "enable_thinking": True, "thinking": "much", "reasoning_effort": "high",
    }  # fmt: skip
    (tool,) = request.tools
    assert (tool.name, tool.description, tool.strict) == ("weather", "Of a city", True)
    assert json.loads(tool.parameters) == TOOL["input_schema"]
    assert request.tool_choice.mode == generation_pb2.TOOL_MODE_REQUIRED
    assert not request.parallel_tool_calls and request.HasField("parallel_tool_calls")
    assert asked(model="base")[0].adapter == ""
    named = asked(tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})[0]
    assert named.tool_choice.name == "weather"
    off = asked(thinking={"type": "disabled"}, output_format=None)[0]
    assert json.loads(off.chat_template_kwargs) == {"enable_thinking": False, "thinking": False}


def source(**other: Any) -> dict[str, Any]:
    return {"messages": [user(IMAGE | {"source": IMAGE["source"] | other})]}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": None}, "max_tokens", "is missing"),
    ({"mood": 1}, "mood", "is not a field"),
    ({"container": "x"}, "container", "leave it out"),
    ({"mcp_servers": [{}]}, "mcp_servers", "leave it out"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses"}]}}, "context_management",
     "leave it out"),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": [user()]}, "messages[0].content", "at least one"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role",
     "'tool'; expected 'user' or 'assistant' or 'system'"),
    ({"messages": [user(text("a")), {"role": "assistant", "content": "The answer is"}]},
     "messages[1].role", "expected 'user' in the last message"),
    ({"messages": [user({"type": "document", "source": {}})]}, "messages[0].content[0].type",
     "'document'; expected 'text' or 'image' or 'tool_result'"),
    ({"messages": [user(call())]}, "messages[0].content[0].type", "'tool_use'; expected"),
    ({"messages": [user({"type": "text"})]}, "messages[0].content[0]", "missing"),
    ({"messages": [user(text("a", mood=1))]}, "messages[0].content[0]", "mood"),
    ({"messages": [user(result([{"type": "search_result"}]))]},
     "messages[0].content[0].content[0].type", "expected 'text' or 'image'"),
    ({"system": [IMAGE]}, "system[0].type", "expected 'text'"),
    (source(type="url", url="https://example.org"), "messages[0].content[0].source.type",
     "'url'; expected 'base64'"),
    (source(media_type="image/bmp"), "messages[0].content[0].source.media_type", "'image/png'"),
    (source(data="?"), "messages[0].content[0].source.data", "is not valid base64"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type",
     "'web_search_20250305'; expected 'custom'"),
    ({"tools": [{"name": "x"}]}, "tools[0]", "input_schema"),
    ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading", "expected False"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type", "requires tools"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name", "None"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type", "expected 'auto' or 'any'"),
    ({"thinking": {"type": "on"}}, "thinking.type", "expected 'enabled'"),
    ({"thinking": {"type": "enabled", "display": "all"}}, "thinking.display", "'omitted'"),
    ({"output_config": {"effort": "some"}}, "output_config.effort", "'low'"),
    ({"output_config": {"format": {"type": "regex", "schema": {}}}}, "output_config.format.type",
     "'json_schema'"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {}}},
      "output_format": {"type": "json_schema", "schema": {}}}, "output_format", "set only one"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "field", "says"), WRONG)
def test_what_cannot_be_done_is_named(given: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        asked(**given)
    assert caught.value.field == field
    reported = json.loads(bytes(refusal(caught.value, CALLER, MessageNames()).body))
    assert reported["error"]["type"] == "invalid_request_error"
    assert field in reported["error"]["message"] and says in reported["error"]["message"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("messages[0].content", "system"),
        ("messages[1].parts[1].image", "messages[0].content[1]"),
        ("messages[2].tool_calls[0].arguments", "messages[1].content[3].input"),
        ("messages[2].tool_calls[0].name", "messages[1].content[3].name"),
        ("messages[3].tool_call_id", "messages[2].content[0].tool_use_id"),
        ("messages[3].content", "messages[2].content[0].content"),
        ("messages[4].content", "messages[2].content[1]"),
        ("messages", "messages"),
        ("tools[1].parameters", "tools[1].input_schema"),
        ("tool_choice.name", "tool_choice.name"),
        ("sampling.stop", "stop_sequences"),
        ("sampling.top_k", "top_k"),
        ("sampling.structured_output.json_schema", "output_config.format.schema"),
        ("routing_key", "metadata.user_id"),
    ],
)  # fmt: skip
def test_errors_of_the_server_name_fields_of_the_request(ours: str, theirs: str) -> None:
    messages = [user(text("a"), IMAGE), ASSISTANT, user(result(), text("b"))]
    names = MessageNames(sources=asked(messages=messages, system="x")[1].sources)
    error = errors.InvalidArgumentError(f"{ours} is {ours!r}", reason="INVALID_FIELD", field=ours)
    reported = json.loads(bytes(refusal(error, CALLER, names).body))["error"]["message"]
    assert reported.startswith(f"{theirs} is ")


CALLER = Caller("mine", "", (), {"x-request-id": "mine"})
KINDS = {
    "InvalidArgumentError": (400, "invalid_request_error"),
    "UnauthenticatedError": (401, "authentication_error"),
    "PermissionDeniedError": (403, "permission_error"),
    "NotFoundError": (404, "not_found_error"),
    "ResourceExhaustedError": (429, "rate_limit_error"),
    "InternalError": (500, "api_error"),
    "UnavailableError": (503, "api_error"),
    "DeadlineExceededError": (504, "timeout_error"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_status_has_a_type(name: str) -> None:
    error: LoramuxError = getattr(errors, name)("why", reason="SOME_REASON", retry_delay=2.0)
    found = refusal(error, CALLER, MessageNames())
    status, kind = KINDS[name]
    assert found.status_code == status
    assert json.loads(bytes(found.body)) == {
        "type": "error", "error": {"type": kind, "message": "why"}, "request_id": "mine",
    }  # fmt: skip
    assert (found.headers["retry-after"], found.headers["request-id"]) == ("2", "mine")


def test_a_full_server_is_overloaded() -> None:
    error = errors.ResourceExhaustedError("full", reason="QUEUE_FULL", retry_delay=1.0)
    found = refusal(error, CALLER, MessageNames())
    assert found.status_code == 529
    assert json.loads(bytes(found.body))["error"]["type"] == "overloaded_error"


def test_a_stream_that_has_nothing_to_say_pings() -> None:
    now = 10.0
    answer = Answer(
        "mine", "bot", stop_sequences=(), shows_thoughts=True, names=MessageNames(),
        clock=lambda: now,
    )  # fmt: skip
    nothing = generation_pb2.StreamGenerateResponse()
    assert answer.events(0, nothing).startswith(b"event: message_start\n")
    now += PING_SECONDS - 1
    assert answer.events(0, nothing) == b""
    now += 1
    assert answer.events(0, nothing) == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert answer.events(0, nothing) == b""


async def test_the_context_leaves_what_prompt_and_virtual_tokens_do_not_take() -> None:
    class Server:
        async def tokenize(self, request: Any, *_: Any) -> tokenization_pb2.TokenizeResponse:
            assert request.sampling.max_tokens == 1
            adapter = generation_pb2.AdapterIdentity(tenant="public", name="bot", version=2)
            return tokenization_pb2.TokenizeResponse(
                token_ids=[7] * 10, context_length=100, adapter=adapter
            )

        async def adapter(self, reference: str, _: Any) -> Any:
            assert reference.startswith("public/bot:2")
            return SimpleNamespace(virtual_tokens=4)

    request, _ = asked()
    counting = Counting(cast(Backend, Server()), CALLER, request, None)
    assert await counting.room() == 86
    assert counting.request is request  # no copy, which would hold images twice


@pytest.mark.parametrize(("most", "calls"), [(100, "tg"), (1 << 40, "tg"), (99, "gtg"), (90, "g")])
async def test_a_prompt_goes_no_oftener_than_it_must(most: int, calls: str) -> None:
    made = ""

    class Server:
        async def info(self, _: Any) -> Any:
            return SimpleNamespace(context_length=100, kind="decoder")

        async def tokenize(self, *_: Any) -> tokenization_pb2.TokenizeResponse:
            nonlocal made
            made += "t"
            return tokenization_pb2.TokenizeResponse(token_ids=[7] * 10, context_length=100)

        async def generate(self, request: Any, *_: Any) -> generation_pb2.GenerateResponse:
            nonlocal made
            made += "g"
            if request.sampling.max_tokens > 90:
                raise InvalidArgumentError(
                    "too many", reason="CONTEXT_LENGTH_EXCEEDED", field="sampling.max_tokens"
                )
            return generation_pb2.GenerateResponse(completions=[generation_pb2.Completion()])

    async def send(_: Any) -> None:
        pass

    request, _ = asked(max_tokens=most)
    answer = Answer("mine", "bot", stop_sequences=(), shows_thoughts=True, names=MessageNames())
    fitting = Fitting(cast(Backend, Server()), CALLER, request, answer, None)
    await fitting.whole({"type": "http"}, cast(Any, None), send)
    assert (made, request.sampling.max_tokens, answer.is_shortened) == (calls, 90, most > 90)


@pytest.mark.parametrize("block", [text("t"), {"type": "thinking", "thinking": "t"}])
def test_what_many_blocks_take_grows_with_their_number(block: dict[str, Any]) -> None:
    kind = block["type"]
    blocks = [block | {kind: "t" * (16 << 20)}, *[block] * 30_000]
    started = time.process_time()
    asked(messages=[user(text("a")), {"role": "assistant", "content": blocks}, user(text("b"))])
    assert time.process_time() - started < 8
