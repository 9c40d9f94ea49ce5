"""Tools over the real socket: an adapter that was trained to call them, and others that have to."""

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import openai
import pytest

from loramux import AsyncClient, Client, FinishReason, Generation, Message
from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.v1.generation_pb2 import (
    TOOL_MODE_NONE,
    TOOL_MODE_REQUIRED,
    ChatMessage,
    GenerateRequest,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.server import RunningServer
from tests.support.templates import CHATML, chat_tokenizer
from tests.support.tool_adapter import (
    AFTER,
    ASKED,
    BEFORE,
    CALLS,
    THOUGHT,
    WEATHER,
    save_caller,
)
from tests.support.tool_templates import TOOL_TEMPLATES, UNREAD
from tests.support.wire import GENERATE, refusal, send

if TYPE_CHECKING:
    import anthropic

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 250}
CITIES = WEATHER["parameters"]["properties"]["city"]["enum"]
CLOCK: dict[str, Any] = {"name": "clock"}
FREE: dict[str, Any] = {"temperature": 1.5, "max_tokens": 250}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("tools")
    tokenizer = chat_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [1, end]
    model.save_pretrained(str(folder / "base"))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(folder / "base"))
    for seed, (name, template) in enumerate((TOOL_TEMPLATES | {"unread": UNREAD}).items()):
        save_adapter(model, folder / "adapters" / name, seed=seed, r=4, target_modules=["q_proj"])
        (folder / "adapters" / name / "chat_template.jinja").write_text(template)
    save_caller(model, tokenizer, folder / "adapters" / "caller")
    # Drafts would let many tokens come in one piece, and it is asked where pieces end.
    options = ["--adapters", str(folder / "adapters"), "--speculative-tokens", "0"]
    with RunningServer(folder, folder / "base", *options) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def asked(client: Client, **options: Any) -> Generation:
    return client.chat(ASKED, adapter="caller", **{"tools": [WEATHER], **GREEDY, **options})


# Where the model decides


def test_the_model_calls_tools_and_goes_on_with_their_results(client: Client) -> None:
    answer = asked(client)
    assert (answer.reasoning, answer.text) == (THOUGHT, BEFORE)
    assert [(call.name, call.kwargs) for call in answer.tool_calls] == [
        ("weather", arguments) for arguments in CALLS
    ]
    assert answer.finish_reason is FinishReason.TOOL_CALLS
    results: list[Message] = [
        {"role": "tool", "tool_call_id": call.id, "content": "3"} for call in answer.tool_calls
    ]
    last = asked(client).message  # with other ids
    for turn in (answer.message, last):
        messages: list[Message] = [*ASKED, turn, *results]
        final = client.chat(messages, adapter="caller", tools=[WEATHER], **GREEDY)
        assert (final.text, final.tool_calls) == (AFTER, ())
        assert final.finish_reason is FinishReason.STOP


def test_a_stream_has_each_call_when_it_is_whole(client: Client) -> None:
    whole = asked(client)
    chunks = list(client.stream(messages=ASKED, adapter="caller", tools=[WEATHER], **GREEDY))
    assert "".join(chunk.text for chunk in chunks) == BEFORE
    calls = [call for chunk in chunks for call in chunk.tool_calls]
    assert [call.kwargs for call in calls] == CALLS
    assert tuple(t for chunk in chunks for t in chunk.token_ids) == whole.token_ids
    assert chunks[-1].finish_reason is FinishReason.TOOL_CALLS
    places = [index for index, chunk in enumerate(chunks) if chunk.tool_calls]
    assert places[0] < places[1] < len(chunks) - 1


async def test_calls_of_many_completions_at_once(server: RunningServer) -> None:
    async with AsyncClient(server.target) as client:
        answers = await asyncio.gather(*(
            client.chat(ASKED, adapter="caller", tools=[WEATHER], n=2, **GREEDY) for _ in range(4)
        ))  # fmt: skip
    calls = [each.tool_calls for answer in answers for each in answer.completions]
    assert [[call.kwargs for call in each] for each in calls] == [CALLS] * 8
    assert len({call.id for each in calls for call in each}) == 16


def test_one_call_ends_the_answer_where_there_may_be_no_second(client: Client) -> None:
    answer = asked(client, parallel_tool_calls=False)
    assert [call.kwargs for call in answer.tool_calls] == CALLS[:1]
    assert (answer.text, answer.finish_reason) == (BEFORE, FinishReason.TOOL_CALLS)
    assert answer.usage.completion_tokens < asked(client).usage.completion_tokens


def test_no_tools_are_listed_where_none_may_be_called(client: Client) -> None:
    without = client.chat(ASKED, adapter="caller", **GREEDY)
    none = asked(client, tool_choice="none")
    assert none.usage.prompt_tokens == without.usage.prompt_tokens
    assert (none.token_ids, none.tool_calls) == (without.token_ids, ())
    assert asked(client, tool_choice="auto").usage.prompt_tokens > none.usage.prompt_tokens


def test_a_call_that_is_cut_off_is_text(client: Client) -> None:
    tokens = asked(client).usage.completion_tokens
    answer = asked(client, max_tokens=tokens - 20)
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.reasoning == THOUGHT
    assert [call.kwargs for call in answer.tool_calls] == CALLS[:1]
    begun = '<tool_call>\n{"name": "weather", "arg'
    assert answer.text.startswith(BEFORE + "<tool_call>\n") and begun in answer.text
    stopped = asked(client, stop=["Rome"])
    assert stopped.completions[0].stop_string == "Rome"
    assert stopped.finish_reason is FinishReason.TOOL_CALLS
    assert stopped.text.endswith('"city": "')


def test_what_is_thought_is_distinguished_or_not(client: Client) -> None:
    assert asked(client).usage.reasoning_tokens == 2 + len(THOUGHT)  # a mark and a new line before
    answer = asked(client, separate_reasoning=False)
    assert (answer.reasoning, answer.usage.reasoning_tokens) == ("", 0)
    assert answer.text == f"<think>\n{THOUGHT}\n</think>\n\n{BEFORE}"
    assert [call.kwargs for call in answer.tool_calls] == CALLS
    chunks = list(client.stream(messages=ASKED, adapter="caller", tools=[WEATHER], **GREEDY))
    assert "".join(chunk.reasoning for chunk in chunks) == THOUGHT
    assert sum(bool(chunk.reasoning) for chunk in chunks) > 3
    cut = asked(client, max_tokens=8)
    assert THOUGHT.startswith(cut.reasoning) and cut.reasoning
    assert (cut.text, cut.finish_reason) == ("", FinishReason.LENGTH)
    assert client.generate("x", adapter="caller", max_tokens=4).reasoning == ""


def test_a_text_has_its_form_after_what_is_thought(client: Client) -> None:
    forms: list[dict[str, Any]] = [
        {"choice": ["<think>yes", "a/b"]},
        {"regex": r"<think>ye[s/\/]|a/b"},
        {"json_schema": {"enum": ["<think>yes"]}},
    ]
    tokens = chat_tokenizer().convert_tokens_to_ids(["<think>", "</think>"])
    for form in forms:
        for is_told_apart in (True, False):
            answer = client.chat(
                ASKED, adapter="caller", separate_reasoning=is_told_apart,
                logit_bias=dict.fromkeys(tokens, 100.0), **GREEDY, **form,
            )  # fmt: skip
            assert answer.text.strip('"') in ("<think>yes", "<think>ye/", "a/b")
            assert answer.reasoning == ""
            assert (list(answer.token_ids[:2]) == tokens) == is_told_apart
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    answer = asked(client, json_schema=schema)  # or calls, as it was trained
    assert answer.reasoning == THOUGHT
    assert answer.tool_calls or json.loads(answer.text) == {}
    demanded = asked(client, tool_choice="required", parallel_tool_calls=False)
    assert (demanded.reasoning, demanded.text) == (THOUGHT, "")
    assert [call.kwargs["city"] in CITIES for call in demanded.tool_calls] == [True]
    grammar = client.chat(ASKED, adapter="caller", grammar='start: "yes"', **GREEDY)
    assert (grammar.reasoning, grammar.text) == ("", "yes")


def test_variables_reach_the_template(client: Client) -> None:
    plain = client.chat(ASKED, adapter="tags", **GREEDY)
    quiet = client.chat(
        ASKED, adapter="tags", chat_template_kwargs={"enable_thinking": False}, **GREEDY
    )
    assert quiet.usage.prompt_tokens == plain.usage.prompt_tokens + len("<>\n\n<>\n\n") - 2
    same = client.chat(ASKED, adapter="tags", chat_template_kwargs={"unknown": "</s>"}, **GREEDY)
    assert same.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("name", ["texts", "elements", "python", "named"])
def test_a_template_is_given_arguments_of_earlier_calls_as_it_takes_them(
    client: Client, name: str
) -> None:
    arguments = {"city": 'Ürümqi "<|im_end|>"', "days": [1, None]}
    written = json.dumps(arguments, ensure_ascii=False)

    def messages(given: Any, call_id: str) -> list[Any]:
        function = {"name": "weather", "arguments": given}
        calls = [{"id": call_id, "type": "function", "function": function}]
        turn = {"role": "assistant", "content": "", "tool_calls": calls}
        return [*ASKED, turn, {"role": "tool", "tool_call_id": call_id, "content": "3"}]

    answer = client.chat(messages(written, "abcDEF012"), adapter=name, max_tokens=1)
    tokenizer = chat_tokenizer()
    plain = json.loads(written.replace("<|im_end|>", "<:im_end:>"))
    theirs = tokenizer.apply_chat_template(
        messages(
            json.dumps(plain, ensure_ascii=False) if name == "texts" else plain,
            "functions.weather:0" if name == "named" else "abcDEF012",
        ),
        chat_template=TOOL_TEMPLATES[name], add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    assert answer.usage.prompt_tokens == len(theirs)


# Where it has no choice


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_whatever_the_seed_calls_that_are_demanded_meet_their_schemas(
    client: Client, name: str
) -> None:
    def answers(seed: int) -> Generation:
        return client.chat(
            ASKED,
            adapter=name,
            tools=[WEATHER, CLOCK],
            tool_choice="required",
            seed=seed,
            separate_reasoning=False,
            **FREE,
        )

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(answers, range(6)))
    assert {answer.text for answer in found if answer.finish_reason != FinishReason.LENGTH} <= {""}
    calls = [call for answer in found for call in answer.tool_calls]
    assert len(calls) >= len(found) / 2
    for call in calls:
        assert call.name in ("weather", "clock")
        assert call.kwargs == {} if call.name == "clock" else call.kwargs["city"] in CITIES


@pytest.mark.parametrize("choice", ["clock", {"type": "function", "function": {"name": "clock"}}])
def test_the_tool_that_is_named_is_called_once(client: Client, choice: Any) -> None:
    for seed in range(3):
        answer = client.chat(
            ASKED,
            adapter="caller",
            tools=[WEATHER, CLOCK],
            tool_choice=choice,
            seed=seed,
            separate_reasoning=False,
            **FREE,
        )
        (call,) = answer.tool_calls
        assert (call.name, call.kwargs, answer.text) == ("clock", {}, "")
        assert answer.finish_reason is FinishReason.TOOL_CALLS


def test_a_strict_tool_is_called_as_its_schema_says(client: Client) -> None:
    strict = asked(client, tools=[WEATHER | {"strict": True}])
    # Where it would go on as the schema does not allow, it may go on for ever.
    assert strict.reasoning == THOUGHT and strict.text.startswith(BEFORE)
    assert strict.usage.prompt_tokens == asked(client).usage.prompt_tokens
    first, *others = [call.kwargs["city"] for call in strict.tool_calls]
    assert first == "Oslo"
    assert set(others) <= set(CITIES)


def test_an_answer_is_calls_or_meets_a_schema(client: Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    kinds = set()
    for seed in range(12):
        answer = client.chat(
            ASKED,
            adapter="tags",
            tools=[CLOCK],
            json_schema=schema,
            seed=seed,
            separate_reasoning=False,
            **FREE,
        )
        if answer.tool_calls:
            kinds.add("calls")
        elif answer.finish_reason is FinishReason.STOP:
            assert set(json.loads(answer.text)) == {"ok"}
            kinds.add("answer")
    assert "answer" in kinds


# By OpenAI's API


OPENAI_TOOLS: Any = [{"type": "function", "function": WEATHER}]


def test_the_client_of_openai_calls_tools(openai_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "caller", "tools": OPENAI_TOOLS, **GREEDY}
    (choice,) = openai_client.chat.completions.create(messages=ASKED, **options).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", BEFORE)
    assert choice.message.model_dump()["reasoning"] == THOUGHT
    calls: Any = choice.message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == CALLS
    usage = openai_client.chat.completions.create(messages=ASKED, n=2, **options).usage
    assert usage and usage.completion_tokens_details
    assert usage.completion_tokens_details.reasoning_tokens == 2 * (2 + len(THOUGHT))
    messages = [*ASKED, choice.message.model_dump()]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in calls]
    (choice,) = openai_client.chat.completions.create(messages=messages, **options).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", AFTER)
    assert choice.message.tool_calls is None


def test_a_stream_of_openai_numbers_calls_by_their_place(openai_client: openai.OpenAI) -> None:
    stream: Any = openai_client.chat.completions.create(
        model="caller", messages=ASKED, tools=OPENAI_TOOLS, stream=True, **GREEDY
    )
    choices = [chunk.choices[0] for chunk in stream]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1]
    assert [json.loads(call.function.arguments) for call in calls] == CALLS
    assert all(call.id and call.function.name == "weather" for call in calls)
    assert "".join(choice.delta.content or "" for choice in choices) == BEFORE
    thoughts = [choice.delta.model_dump().get("reasoning") or "" for choice in choices]
    assert "".join(thoughts) == THOUGHT
    assert choices[-1].finish_reason == "tool_calls"


def test_the_client_of_openai_demands_calls(openai_client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer: Any = openai_client.chat.completions.create(
            model="tags", messages=ASKED, tools=OPENAI_TOOLS, tool_choice=choice,
            parallel_tool_calls=False, extra_body={"separate_reasoning": False}, **GREEDY,
        )  # fmt: skip
        message = answer.choices[0].message
        assert message.content is None
        assert [call.function.name for call in message.tool_calls] == ["weather"]


def test_what_openai_cannot_have_is_refused_by_name(openai_client: openai.OpenAI) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice.function.name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
         "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "x", "arguments": "{}"}}]}]},
         "messages[0].tool_calls"),
    ]  # fmt: skip
    for body, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            openai_client.chat.completions.create(**{"model": "caller", "messages": ASKED, **body})
        assert caught.value.param == param, body


ANTHROPIC_TOOLS: Any = [
    {"name": "weather", "description": "Of a city", "input_schema": WEATHER["parameters"]}
]


@pytest.fixture(scope="module")
def anthropics(openai_client: openai.OpenAI) -> "Iterator[anthropic.Anthropic]":
    """Anthropic's client of the same gateway."""
    import anthropic

    url = str(openai_client.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_the_client_of_anthropic_calls_tools(anthropics: "anthropic.Anthropic") -> None:
    options: Any = {
        "model": "caller", "tools": ANTHROPIC_TOOLS, "max_tokens": 250,
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    answer = anthropics.messages.create(messages=ASKED, **options)
    blocks: list[Any] = answer.content
    assert (answer.stop_reason, [block.type for block in blocks]) == (
        "tool_use", ["thinking", "text", "tool_use", "tool_use"],
    )  # fmt: skip
    assert (blocks[0].thinking, blocks[1].text) == (THOUGHT, BEFORE)
    assert [(block.name, block.input) for block in blocks[2:]] == [
        ("weather", arguments) for arguments in CALLS
    ]
    with anthropics.messages.stream(messages=ASKED, **options) as stream:
        kinds = [event.type for event in stream]
        reported: list[Any] = stream.get_final_message().content
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    assert kinds.count("input_json") == 2
    assert [block.to_dict() | {"id": ""} for block in reported] == [
        block.to_dict() | {"id": ""} for block in blocks
    ]
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "3"}]}
        for block in reported[2:]
    ]
    messages = [
        *ASKED,
        {"role": "assistant", "content": reported},
        {"role": "user", "content": results},
    ]
    last = anthropics.messages.create(messages=messages, **options)
    assert (last.stop_reason, [block.to_dict() for block in last.content]) == (
        "end_turn", [{"type": "text", "text": AFTER}],
    )  # fmt: skip


def test_the_client_of_anthropic_chooses_what_is_called_and_thought(
    anthropics: "anthropic.Anthropic", client: Client
) -> None:
    options: Any = {
        "model": "caller", "messages": ASKED, "tools": ANTHROPIC_TOOLS, "max_tokens": 250,
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    for choice in ({"type": "tool", "name": "weather"}, {"type": "any"}):
        given: Any = {**choice, "disable_parallel_tool_use": True}
        answer: Any = anthropics.messages.create(tool_choice=given, **options)
        assert [block.name for block in answer.content if block.type == "tool_use"] == ["weather"]
    hidden: Any = {"type": "adaptive", "display": "omitted"}
    answer = anthropics.messages.create(thinking=hidden, **options)
    assert (answer.content[0].type, answer.content[0].thinking) == ("thinking", "")
    assert answer.content[1].text == BEFORE
    del options["max_tokens"], options["extra_body"]
    for kind in ("adaptive", "disabled"):
        thinking: Any = {"type": kind}
        count = anthropics.messages.count_tokens(thinking=thinking, **options)
        asks = {"enable_thinking": kind == "adaptive"}
        wanted = asked(client, chat_template_kwargs=asks, max_tokens=1).usage.prompt_tokens
        assert count.input_tokens == wanted


# What is refused


def test_a_template_that_knows_of_no_tools_is_reported(client: Client) -> None:
    for adapter, message in (
        (None, "does not support tools"),
        ("unread", "unsupported syntax"),
    ):
        with pytest.raises(FailedPreconditionError, match=message) as caught:
            client.chat(ASKED, adapter=adapter, tools=[WEATHER])
        assert (caught.value.reason, caught.value.field) == ("CHAT_TEMPLATE_FAILED", "tools")
        assert client.chat(
            ASKED, adapter=adapter, tools=[WEATHER], tool_choice="none", max_tokens=1
        )


HELLO = ChatMessage(role="user", content="hello")
DEEP = '{"a":' * 65 + "1" + "}" * 65


def tool(name: str = "t", **fields: Any) -> dict[str, Any]:
    return {"tools": [Tool(name=name, **fields)]}


def call(arguments: str = "{}", name: str = "t", **fields: Any) -> dict[str, Any]:
    calls = [ToolCall(name=name, arguments=arguments, **fields)]
    return {"messages": [HELLO, ChatMessage(role="assistant", tool_calls=calls)]}


REQUIRED = ToolChoice(mode=TOOL_MODE_REQUIRED)
WRONG: list[tuple[dict[str, Any], str, str]] = [
    (tool(""), "tools[0].name", "1 to 64"),
    (tool("a b"), "tools[0].name", "'a b'"),
    (tool("x" * 65), "tools[0].name", "1 to 64"),
    ({"tools": [Tool(name="a"), Tool(name="a")]}, "tools[1].name", "each name once"),
    ({"tools": [Tool(name=f"t{i}") for i in range(129)]}, "tools", "at most 128"),
    (tool(parameters="{"), "tools[0].parameters", "not valid JSON"),
    (tool(parameters="[]"), "tools[0].parameters", "a JSON object"),
    (tool(parameters='{"type": "array"}'), "tools[0].parameters", "expected object"),
    (tool(parameters='{"x-guidance": {}}'), "tools[0].parameters", "x-guidance"),
    (tool(parameters='{"a": NaN}'), "tools[0].parameters", "not valid JSON"),
    (tool(parameters='{"a": "\\ud800"}'), "tools[0].parameters", "not valid JSON"),
    (tool(parameters='{"a": 18446744073709551616}'), "tools[0].parameters", "64 bits"),
    (tool(parameters=DEEP), "tools[0].parameters", "deeper than 64"),
    (tool(parameters="[" * 100_000), "tools[0].parameters", "deeper than 64"),
    (tool(description="x" * (257 << 10)), "tools", "at most 262144"),
    ({"prompt": "x", "messages": [], **tool()}, "tools", "without messages"),
    ({"prompt": "x", "messages": [], "chat_template_kwargs": '{"a": 1}'},
     "chat_template_kwargs", "without messages"),
    ({"chat_template_kwargs": "[1]"}, "chat_template_kwargs", "a JSON object"),
    ({"chat_template_kwargs": '{"messages": []}'}, "chat_template_kwargs", "other than"),
    ({"chat_template_kwargs": '{"self.x": 1}'}, "chat_template_kwargs", "other than"),
    ({"tool_choice": REQUIRED}, "tool_choice.mode", "set tools"),
    ({"tool_choice": ToolChoice()}, "tool_choice", "is empty"),
    ({"tool_choice": ToolChoice(name="u"), **tool()}, "tool_choice.name", "one of tools: t"),
    ({"tool_choice": ToolChoice(name="u"), **tool(), "messages": [HELLO]}, "tool_choice.name", "u"),
    ({"tool_choice": ToolChoice.FromString(b"\x08\x09"), **tool()}, "tool_choice.mode", "is 9"),
    (call("[1]"), "messages[1].tool_calls[0].arguments", "a JSON object"),
    (call("{"), "messages[1].tool_calls[0].arguments", "not valid JSON"),
    (call(name=""), "messages[1].tool_calls[0].name", "1 to 64"),
    (call(id="\n"), "messages[1].tool_calls[0].id", "printable"),
    ({"messages": [ChatMessage(role="user", tool_calls=[ToolCall(name="t")])]},
     "messages[0].tool_calls", "not assistant"),
    ({"messages": [ChatMessage(role="assistant", tool_call_id="1")]},
     "messages[0].tool_call_id", "not tool"),
    ({"messages": [ChatMessage(role="user", reasoning="hm")]},
     "messages[0].reasoning", "not assistant"),
    ({"messages": [ChatMessage(role="user", name="me")]}, "messages[0].name", "not tool"),
    ({"messages": [ChatMessage(role="assistant", tool_calls=[ToolCall(name="t")] * 129)]},
     "messages[0].tool_calls", "at most 128"),
    ({"tool_choice": REQUIRED, **tool(), "sampling": SamplingParams(min_tokens=3)},
     "sampling.min_tokens", "none when calls"),
    ({"tool_choice": REQUIRED, **tool(), "sampling": SamplingParams(ignore_eos=True)},
     "sampling.ignore_eos", "none when calls"),
    ({"tool_choice": REQUIRED, **tool(), "sampling": SamplingParams(
        structured_output=StructuredOutput(json_object=True))},
     "sampling.structured_output", "requires a call"),
    ({**tool(), "sampling": SamplingParams(structured_output=StructuredOutput(regex="a"))},
     "sampling.structured_output.regex", "json_schema or json_object"),
    ({**tool(), "sampling": SamplingParams(
        structured_output=StructuredOutput(json_schema='{"minimum": 1e400}'))},
     "sampling.structured_output.json_schema", "not valid JSON"),
    ({"tool_choice": REQUIRED, **tool(parameters='{"uniqueItems": true}')}, "tools", "uniqueItems"),
    ({"adapter": "pairs", "tool_choice": REQUIRED, **tool(parameters='{"minProperties": 1}')},
     "tools[0].parameters", "uses 'minProperties'; this is not"),
    ({"adapter": "pairs", **tool(strict=True, parameters='{"properties": {"a": {"minimum": 1}}}')},
     "tools[0].parameters", "has the parameter 'a', which has no type; this is not"),
    ({"tool_choice": REQUIRED, **tool(parameters=json.dumps({"enum": ["x" * 100] * 700}))},
     "tools", "more than 65536 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "message"), WRONG)
def test_wrong_tools_are_refused_by_name(
    channel: grpc.Channel, fields: dict[str, Any], field: str, message: str
) -> None:
    request = GenerateRequest(**{"messages": [HELLO], "adapter": "tags", **fields})
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, GENERATE, request.SerializeToString())
    found = refusal(caught.value)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, field), found.message
    assert message in found.message and found.reason == "INVALID_FIELD"


def test_what_is_not_to_be_called_need_not_be_known(channel: grpc.Channel) -> None:
    request = GenerateRequest(
        messages=[HELLO], tools=[Tool(name="t")], tool_choice=ToolChoice(mode=TOOL_MODE_NONE),
        sampling=SamplingParams(max_tokens=1),
    )  # fmt: skip
    assert send(channel, GENERATE, request.SerializeToString())


def test_the_client_names_what_does_not_fit(client: Client) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tools": [{"parameters": {}}]}, "tools[0]"),
        ({"tools": [{"name": "t", "parameters": 3}]}, "tools[0]"),
        ({"tools": ["t"]}, "tools[0]"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs"),
    ]
    for options, field in wrong:
        with pytest.raises(InvalidArgumentError) as caught:
            client.chat(ASKED, **options)
        assert caught.value.field == field


def test_others_in_the_batch_get_what_they_get_alone(client: Client) -> None:
    kinds: list[dict[str, Any]] = [
        {"adapter": "caller", "tools": [WEATHER]},
        {"adapter": "caller"},
        {"adapter": "names", "tools": [CLOCK], "tool_choice": "required"},
        {"adapter": None, "json_object": True},
    ]

    def tokens(kind: dict[str, Any]) -> tuple[int, ...]:
        return client.chat(ASKED, **kind, seed=3, temperature=0.7, max_tokens=60).token_ids

    alone = [tokens(kind) for kind in kinds]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokens, itertools.chain(kinds, kinds)))
    assert found == alone * 2
