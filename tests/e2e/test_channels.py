"""Answers on channels over the real socket: an adapter that was trained to write them."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from loramux import Client, FinishReason, Message
from tests.support.channel_adapter import ANSWER, ANSWERED, CALLED, save_writer
from tests.support.channels import CHANNELS, channel_tokenizer
from tests.support.models import tiny_model
from tests.support.server import RunningServer
from tests.support.tool_adapter import AFTER, ASKED, BEFORE, THOUGHT, WEATHER

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 250}
CITIES = WEATHER["parameters"]["properties"]["city"]["enum"]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
          "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("channels")
    tokenizer = channel_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [
        tokenizer.convert_tokens_to_ids(token) for token in ("<|return|>", "<|call|>")
    ]
    model.save_pretrained(str(folder / "base"))
    tokenizer.chat_template = CHANNELS
    tokenizer.save_pretrained(str(folder / "base"))
    save_writer(model, tokenizer, folder / "adapters" / "writer")
    options = ["--adapters", str(folder / "adapters"), "--speculative-tokens", "0"]
    with RunningServer(folder, folder / "base", *options) as running:
        yield running
    shutil.rmtree(folder)


def test_a_thought_and_an_answer_are_distinguished(client: Client) -> None:
    answer = client.chat(ASKED, adapter="writer", **GREEDY)
    assert (answer.reasoning, answer.text) == (THOUGHT, ANSWER)
    assert answer.finish_reason is FinishReason.STOP
    assert channel_tokenizer().decode(answer.token_ids) == ANSWERED
    chunks = list(client.stream(messages=ASKED, adapter="writer", **GREEDY))
    assert "".join(chunk.reasoning for chunk in chunks) == THOUGHT
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    assert sum(bool(chunk.text) for chunk in chunks) > 3
    whole = client.chat(ASKED, adapter="writer", separate_reasoning=False, **GREEDY)
    assert whole.reasoning == "" and whole.token_ids == answer.token_ids
    assert THOUGHT in whole.text and whole.text.endswith(ANSWER)
    for most in (2, 12):
        cut = client.chat(ASKED, adapter="writer", **GREEDY | {"max_tokens": most})
        assert (cut.text, cut.finish_reason) == ("", FinishReason.LENGTH)
        assert THOUGHT.startswith(cut.reasoning) and bool(cut.reasoning) == (most > 2)


def test_the_model_calls_a_tool_and_goes_on_with_its_result(client: Client) -> None:
    answer = client.chat(ASKED, adapter="writer", tools=[WEATHER], **GREEDY)
    assert (answer.reasoning, answer.text) == (THOUGHT, BEFORE)
    assert [(call.name, call.kwargs) for call in answer.tool_calls] == [
        ("weather", {"city": "Oslo"})
    ]
    assert answer.finish_reason is FinishReason.TOOL_CALLS
    assert channel_tokenizer().decode(answer.token_ids) == CALLED
    (call,) = answer.tool_calls
    result: Message = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    final = client.chat(
        [*ASKED, answer.message, result], adapter="writer", tools=[WEATHER], **GREEDY
    )
    assert (final.reasoning, final.text, final.tool_calls) == ("", AFTER, ())
    chunks = list(client.stream(messages=ASKED, adapter="writer", tools=[WEATHER], **GREEDY))
    assert [call.kwargs for chunk in chunks for call in chunk.tool_calls] == [{"city": "Oslo"}]
    assert "".join(chunk.text for chunk in chunks) == BEFORE


def test_forms_and_calls_that_are_demanded_come_after_what_is_thought(client: Client) -> None:
    formed = client.chat(ASKED, adapter="writer", json_schema=SCHEMA, **GREEDY)
    assert (formed.reasoning, json.loads(formed.text).keys()) == (THOUGHT, {"ok"})
    demanded = client.chat(
        ASKED, adapter="writer", tools=[WEATHER], tool_choice="required", **GREEDY
    )
    assert (demanded.reasoning, demanded.text) == (THOUGHT, "")
    (call,) = demanded.tool_calls  # of which city it was not taught without words before it
    assert call.kwargs["city"] in CITIES
    for seed in range(4):  # of the base, which was never taught
        free: dict[str, Any] = {"temperature": 1.5, "max_tokens": 250, "seed": seed}
        called = client.chat(
            ASKED, tools=[WEATHER], tool_choice="weather", separate_reasoning=False, **free
        )
        assert [call.kwargs["city"] in CITIES for call in called.tool_calls] == [True]
        assert (called.text, called.finish_reason) == ("", FinishReason.TOOL_CALLS)


def test_the_client_of_openai_gets_calls_and_thoughts(openai_client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": WEATHER}]
    options: dict[str, Any] = {"model": "writer", "tools": tools, "messages": ASKED, **GREEDY}
    (choice,) = openai_client.chat.completions.create(**options).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", BEFORE)
    assert choice.message.model_dump()["reasoning"] == THOUGHT
    stream: Any = openai_client.chat.completions.create(stream=True, **options)
    choices = [chunk.choices[0] for chunk in stream]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Oslo"}]
    assert "".join(choice.delta.content or "" for choice in choices) == BEFORE
