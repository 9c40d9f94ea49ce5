"""OpenAI's Responses API: OpenAI's own client, a real gateway, and what gRPC answers."""

import json
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent

from loramux import Client, Message
from tests.support.adapters import save_adapter
from tests.support.gateway import RunningGateway
from tests.support.models import tiny_model
from tests.support.server import RunningServer
from tests.support.templates import CHATML, chat_tokenizer
from tests.support.tool_adapter import AFTER, ASKED, BEFORE, CALLS, THOUGHT, WEATHER, save_caller
from tests.support.tool_templates import TOOL_TEMPLATES

ROUTE = "/v1/responses"
TOOL: Any = {"type": "function", **WEATHER}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_output_tokens": 250}
ANY_EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("responses")
    tokenizer = chat_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    model.save_pretrained(str(folder / "base"))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(folder / "base"))
    save_adapter(model, folder / "adapters" / "tags", seed=1, r=4, target_modules=["q_proj"])
    (folder / "adapters" / "tags" / "chat_template.jinja").write_text(TOOL_TEMPLATES["tags"])
    save_caller(model, tokenizer, folder / "adapters" / "caller")
    # Drafts would let many tokens come in one piece, and it is asked where pieces end.
    options = ["--adapters", str(folder / "adapters"), "--speculative-tokens", "0"]
    with RunningServer(folder, folder / "base", *options) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def gateway(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), server.target) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def openai_client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as client:
        yield client


def events_of(gateway: RunningGateway, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each as the types of OpenAI's client have it."""
    found = gateway.post(ROUTE, {"stream": True, **body})
    assert (found.status, found.headers["content-type"]) == (
        200,
        "text/event-stream; charset=utf-8",
    )
    events = []
    for text in found.body.decode().split("\n\n")[:-1]:
        name, data = text.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        ANY_EVENT.validate_python(events[-1])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("model", ["base", "tags"])
def test_a_response_is_what_grpc_gives(
    openai_client: openai.OpenAI, client: Client, model: str
) -> None:
    talk: list[Message] = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "I."}, {"role": "user", "content": "And?"},
    ]  # fmt: skip
    adapter = None if model == "base" else model
    wanted = client.chat(talk, adapter=adapter, max_tokens=8, seed=7, temperature=0.9)
    items: Any = [talk[1], {"type": "message", **talk[2]}, {"role": "user", "content": [
        {"type": "input_text", "text": "An"}, {"type": "input_text", "text": "d?"}]}]  # fmt: skip
    options: dict[str, Any] = {
        "model": model, "instructions": talk[0]["content"], "input": items, "temperature": 0.9,
        "max_output_tokens": 8, "metadata": {"a": "b"}, "extra_body": {"seed": 7},
    }  # fmt: skip
    found = openai_client.responses.create(**options)
    assert found.output_text == wanted.text
    assert (found.model, found.store, found.metadata) == (model, False, {"a": "b"})
    assert (found.temperature, found.top_p, found.instructions) == (0.9, 1.0, "Be brief.")
    assert found.usage and (found.usage.input_tokens, found.usage.output_tokens) == (
        wanted.usage.prompt_tokens, wanted.usage.completion_tokens,
    )  # fmt: skip
    again = openai_client.responses.create(**options, store=True)
    assert again.usage and again.usage.input_tokens_details.cached_tokens > 0
    with openai_client.responses.stream(**options) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == wanted.text


def test_tools_are_called_and_their_results_are_items(openai_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "caller", "tools": [TOOL], **GREEDY}
    found = openai_client.responses.create(input=ASKED, **options)
    assert (found.status, found.output_text) == ("completed", BEFORE)
    thought, said, *calls = found.output
    assert thought.type == "reasoning" and thought.content
    assert [part.text for part in thought.content] == [THOUGHT]
    assert said.type == "message"
    assert [json.loads(call.arguments) for call in calls if call.type == "function_call"] == CALLS
    assert found.usage
    marks = 2  # what begins a thought, and a new line: each is one token, as letters are
    assert found.usage.output_tokens_details.reasoning_tokens == len(THOUGHT) + marks
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        for call in calls
        if call.type == "function_call"
    ]
    as_they_came: Any = [*ASKED, *found.output, *results]
    as_plain: Any = [*ASKED, *(item.to_dict() for item in found.output), *results]
    for items in (as_they_came, as_plain):
        final = openai_client.responses.create(input=items, **options)
        assert [item.type for item in final.output] == ["message"]
        assert (final.status, final.output_text) == ("completed", AFTER)


def test_a_stream_reports_each_item_as_it_is_written(
    gateway: RunningGateway, openai_client: openai.OpenAI
) -> None:
    body: dict[str, Any] = {"model": "caller", "input": ASKED, "tools": [TOOL], **GREEDY}
    events = events_of(gateway, **body)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed"
    in_order = [kind for i, kind in enumerate(kinds) if kind != kinds[i - 1]]
    text = ["content_part.added", "{}.delta", "{}.done", "content_part.done"]
    call = ["function_call_arguments.delta", "function_call_arguments.done"]
    assert in_order[2:-1] == [
        kind
        for inner in (
            [each.format("reasoning_text") for each in text],
            [each.format("output_text") for each in text], call, call,
        )
        for kind in ("output_item.added", *inner, "output_item.done")
    ]  # fmt: skip
    assert kinds.count("reasoning_text.delta") > 1 and kinds.count("output_text.delta") > 1
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert [event["output_index"] for event in events if "item" in event] == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
    streamed, whole = events[-1]["response"], gateway.post(ROUTE, body).json
    for item in (*streamed["output"], *whole["output"]):
        item["id"] = item["call_id"] = ""
    for name in ("output", "status", "tools", "text"):
        assert streamed[name] == whole[name]
    assert streamed["usage"]["output_tokens_details"] == whole["usage"]["output_tokens_details"]
    with openai_client.responses.stream(**body) as stream:
        assert stream.get_final_response().output_text == BEFORE


def test_what_is_cut_off_is_incomplete(
    gateway: RunningGateway, openai_client: openai.OpenAI
) -> None:
    body: dict[str, Any] = {"model": "caller", "input": ASKED, "tools": [TOOL], "temperature": 0}
    for count, last in ((6, "reasoning"), (30, "message")):
        found = openai_client.responses.create(max_output_tokens=count, **body)
        assert found.incomplete_details and found.status == "incomplete"
        assert found.incomplete_details.reason == "max_output_tokens"
        item: Any = found.output[-1]
        assert (item.type, item.status) == (last, "incomplete")
        assert found.usage and found.usage.output_tokens == count
        *_, end = events_of(gateway, max_output_tokens=count, **body)
        assert end["type"] == "response.incomplete"
        assert end["response"]["output"][-1]["content"] == item.to_dict()["content"]


class Trip(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]
    is_far: bool


def test_a_text_has_the_form_of_a_class(openai_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tags", "input": "A trip?", "max_output_tokens": 200,
        "reasoning": {"effort": "none"}, "extra_body": {"seed": 3},
    }  # fmt: skip
    found = openai_client.responses.parse(text_format=Trip, **options)
    assert isinstance(found.output_parsed, Trip)
    with openai_client.responses.stream(text_format=Trip, **options) as stream:
        assert stream.get_final_response().output_parsed == found.output_parsed
    form: Any = {"format": {"type": "json_object"}}
    found = openai_client.responses.create(text=form, **{**options, "max_output_tokens": 20})
    assert found.output_text.lstrip().startswith("{")


def test_tools_may_be_demanded(openai_client: openai.OpenAI) -> None:
    tools: Any = [{**TOOL, "strict": True}]
    choices: list[Any] = ["required", {"type": "function", "name": "weather"}]
    for choice in choices:
        found: Any = openai_client.responses.create(
            model="caller", input=ASKED, tools=tools, tool_choice=choice,
            parallel_tool_calls=False, **GREEDY,
        )  # fmt: skip
        assert [item.type for item in found.output] == ["reasoning", "function_call"]
        assert json.loads(found.output[1].arguments)["city"] in ("Oslo", "Ürümqi")
        assert not found.parallel_tool_calls


def test_log_probabilities_are_those_of_the_text(openai_client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "caller", "input": ASKED, "tools": [TOOL], **GREEDY}
    reported: Any = {"include": ["message.output_text.logprobs"]}
    found: Any = openai_client.responses.create(top_logprobs=2, **reported, **body)
    (part,) = found.output[1].content
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == part.text == BEFORE
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}
    with openai_client.responses.stream(**reported, **body) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
    for event in deltas:
        assert "".join(token.token for token in event.logprobs) == event.delta
    plain: Any = openai_client.responses.create(**body)
    assert plain.output[1].content[0].logprobs == []


def test_effort_reaches_the_template(openai_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tags", "input": "Oslo?", "max_output_tokens": 1}
    counts = []
    for more in ({}, {"reasoning": {"effort": "low", "summary": "auto"}},
                 {"reasoning": {"effort": "none"}},
                 {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}):  # fmt: skip
        usage = openai_client.responses.create(**options, **more).usage
        assert usage
        counts.append(usage.input_tokens)
    plain, low, none, variable = counts
    assert plain == low < none == variable


USER = {"role": "user", "content": "x"}
CALL = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "responses are not stored"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "send the earlier items"),
    ({"background": True}, "background", "background is true"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "give the text as instructions or input"),
    ({"truncation": "auto"}, "truncation", "'auto'; expected 'disabled'"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "'low'; expected 'medium'"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "'xml'; expected 'text' or"),
    ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format.schema",
     "text.format.schema cannot be used"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'; expected 'function'"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name", "tools[0].name is 'a b'"),
    ({"tool_choice": "perhaps"}, "tool_choice", "'perhaps'; expected 'auto'"),
    ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice.type", "'mcp'; expected"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "y"}}, "tool_choice.name",
     "'y'"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'huge'; expected 'none' or"),
    ({"include": ["thoughts"]}, "include[0]", "'thoughts'; expected"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0"),
    ({"top_logprobs": 21}, "top_logprobs", "top_logprobs is 21"),
    ({"max_tokens": 3}, "max_tokens", "is not a field"),
    ({"input": []}, "input", "at least one item"),
    ({"input": "x" * 2000}, "input", "input has 20"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "'tool'; expected 'user'"),
    ({"input": [USER, {"type": "item_reference", "id": "y"}]}, "input[1].type", "item itself"),
    ({"input": [USER, {"type": "file_search_call"}]}, "input[1].type", "'file_search_call'"),
    ({"input": [{**USER, "content": [{"type": "input_file"}]}]}, "input[0].content[0].type",
     "'input_file'; expected 'input_text'"),
    ({"input": [USER, CALL, {**CALL, "arguments": "[]"}]}, "input[2].arguments", "'[]'"),
    ({"input": [USER, {**CALL, "call_id": "\n"}]}, "input[1].call_id", "printable"),
    ({"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
     "input[1].encrypted_content", "give it as content"),
]  # fmt: skip


def test_what_is_not_served_is_refused_by_name(gateway: RunningGateway) -> None:
    for more, param, said in REFUSED:
        found = gateway.post(ROUTE, {"model": "caller", "input": "x", **more})
        assert (found.status, found.error["param"]) == (400, param), more
        assert found.error["type"] == "invalid_request_error"
        assert said in found.error["message"], found.error
    missing = gateway.post(ROUTE, {"model": "nobody", "input": "x", "stream": True})
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
