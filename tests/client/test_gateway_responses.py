"""What becomes of the items of an input, and of the pieces of an answer."""

import json
import time
from typing import Any

import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent

from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.gateway.responses.answering import ResponseEvents
from loramux.gateway.responses.body import ResponsesBody
from loramux.gateway.responses.items import conversation_of
from loramux.gateway.responses.names import ResponsesNames
from loramux.gateway.responses.response import Response
from loramux.v1.generation_pb2 import (
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    Completion,
    PositionLogprobs,
    SamplingParams,
    StreamGenerateResponse,
    TokenLogprob,
    ToolCall,
    Usage,
)

ANY_EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
USER: Any = {"role": "user", "content": "a"}
THINK: Any = {"type": "reasoning", "summary": [],
              "content": [{"type": "reasoning_text", "text": "t"}]}  # fmt: skip
SAY: Any = {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1",
       "content": [{"type": "output_text", "text": "s", "annotations": []}]}  # fmt: skip
CALL: Any = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "id": "fc_1"}
RESULT: Any = {"type": "function_call_output", "call_id": "1", "output": "3"}


@pytest.mark.parametrize(
    ("items", "reported"),
    [
        pytest.param("a", ["user:a"], id="text"),
        pytest.param([USER, USER], ["user:a", "user:a"], id="users"),
        pytest.param([THINK, SAY, CALL, CALL, RESULT], ["assistant:t:s:ff", "tool:3"], id="turn"),
        pytest.param([CALL, SAY], ["assistant::s:f"], id="text-behind-a-call"),
        pytest.param([SAY, CALL, SAY], ["assistant::ss:f"], id="text-on-both-sides"),
        pytest.param([SAY, SAY], ["assistant::s:", "assistant::s:"], id="texts"),
        pytest.param([THINK, CALL, THINK, SAY], ["assistant:t::f", "assistant:t:s:"],
                     id="thoughts"),
        pytest.param([THINK, THINK, SAY], ["assistant:t\n\nt:s:"], id="thoughts-in-a-row"),
        pytest.param([{**THINK, "content": None}, SAY], ["assistant::s:"], id="no-thought"),
        pytest.param([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "u"}]}],
                     ["assistant:u::"], id="summary"),
        pytest.param([{"role": "assistant", "content": [{"type": "refusal", "refusal": "n"}]}],
                     ["assistant::n:"], id="refusal"),
    ],
)  # fmt: skip
def test_items_of_an_assistant_are_one_message(items: Any, reported: list[str]) -> None:
    found = []
    for message in conversation_of(None, items).messages:
        content = message.content
        if isinstance(content, list):
            content = "".join(str(part["text"]) for part in content)
        calls = "".join(call.function.name for call in message.tool_calls or ())
        more = f"{message.reasoning or ''}:" if message.role == "assistant" else ""
        found.append(f"{message.role}:{more}{content}" + (f":{calls}" if more else ""))
    assert found == reported


def test_errors_name_the_items_of_which_a_message_was_made() -> None:
    names = ResponsesNames(
        {}, conversation_of("Be.", [USER, THINK, SAY, CALL, CALL, RESULT]).sources
    )
    for field, param in (
        ("messages[0].content", "instructions"), ("messages[1].role", "input[0].role"),
        ("messages[2].reasoning", "input[1].content"), ("messages[2].content", "input[2].content"),
        ("messages[2].tool_calls[1].arguments", "input[4].arguments"),
        ("messages[2].tool_calls[0].id", "input[3].call_id"),
        ("messages[3].tool_call_id", "input[5].call_id"),
        ("messages[3].parts[1].image", "input[5].output[1].image_url"),
        ("messages[9].role", "messages[9].role"), ("tools[0].name", "tools[0].name"),
        ("messages", "input"),
    ):  # fmt: skip
        assert names.param(field) == param
        assert names.message(f"{field} is 'x'", field) == f"{param} is 'x'"


def piece(**delta: Any) -> StreamGenerateResponse:
    tokens = delta.pop("tokens", ())
    delta["token_ids"] = range(len(tokens))
    delta["logprobs"] = [PositionLogprobs(chosen=TokenLogprob(utf8=each)) for each in tokens]
    return StreamGenerateResponse(delta=Completion(**delta))


BEGIN = StreamGenerateResponse(sampling=SamplingParams(temperature=0.7, top_p=1))


def answer(**options: Any) -> ResponseEvents:
    return ResponseEvents(Response(ResponsesBody(model="m", input="x", **options), "r"),
                          ResponsesNames())  # fmt: skip


def reported(events: ResponseEvents, *pieces: StreamGenerateResponse, end: Any) -> list[Any]:
    raw = b"".join(events.events(0, each) for each in (BEGIN, *pieces)) + end(events)
    found = [json.loads(each.partition("\ndata: ")[2]) for each in raw.decode().split("\n\n")[:-1]]
    for each in found:
        ANY_EVENT.validate_python(each)
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def test_an_item_begins_where_another_kind_does() -> None:
    pieces = [
        piece(reasoning="t", tokens=[b"<think>", b"t"]), piece(tokens=[b"</think>"]),
        piece(text="s", tokens=[b"s"]), piece(tool_calls=[ToolCall(id="1", name="f")]),
        piece(text="u", tokens=[b"u"]), piece(finish_reason=FINISH_REASON_TOOL_CALLS),
        StreamGenerateResponse(usage=Usage(prompt_tokens=3, completion_tokens=9, cached_tokens=2,
                                     reasoning_tokens=2)),
    ]  # fmt: skip
    end = reported(answer(), *pieces, end=lambda events: events.end([]))[-1]
    assert end["type"] == "response.completed"
    response = end["response"]
    assert [item["type"] for item in response["output"]] == [
        "reasoning", "message", "function_call", "message",
    ]  # fmt: skip
    assert response["usage"] == {
        "input_tokens": 3, "output_tokens": 9, "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    assert (response["temperature"], response["store"]) == (0.7, False)


def test_an_answer_without_text_has_a_message() -> None:
    end = reported(answer(), piece(finish_reason=FINISH_REASON_STOP), end=lambda e: e.end([]))[-1]
    (item,) = end["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("completed", "")


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        pytest.param([("ab", [b"a", b"b"])], "ab", id="at-once"),
        pytest.param([("", [b"</think>", b"\n"]), ("a", [b"a"])], "a", id="behind-marks"),
        pytest.param([("a", [b"a", b"<"]), ("<b", [b"b"])], "a<b", id="held-back"),
        pytest.param([("", [b"\xc3"]), ("\xe9", [b"\xa9"])], "\xe9", id="half-a-character"),
        pytest.param([("a", [b"a"]), ("", [b"<|im_end|>"])], "a", id="ended"),
        pytest.param([("", [b"a"]), ("a", [])], "a", id="held-back-to-the-end"),
        pytest.param([("n", [b"<think>", b"n"])], "n", id="twice"),
    ],
)
def test_tokens_of_a_text_are_reported_with_it(
    pieces: list[tuple[str, list[bytes]]], wanted: str
) -> None:
    events = reported(
        answer(top_logprobs=1),
        *(piece(text=text, tokens=tokens) for text, tokens in pieces),
        piece(finish_reason=FINISH_REASON_STOP),
        end=lambda events: events.end([]),
    )
    done = next(each for each in events if each["type"] == "response.output_text.done")
    assert b"".join(bytes(each["bytes"]) for each in done["logprobs"]).decode() == wanted
    parts = [each["logprobs"] for each in events if each["type"] == "response.output_text.delta"]
    assert [token for part in parts for token in part] == done["logprobs"]


@pytest.mark.parametrize(
    ("error", "code", "theirs"),
    [
        (UnavailableError("gone", reason="ENGINE_GONE"), "server_error", "engine_gone"),
        (ResourceExhaustedError("x", reason="QUOTA"), "rate_limit_exceeded", "quota"),
        (FailedPreconditionError("x", reason="FORM_FAILED"), "invalid_prompt", "form_failed"),
        (InvalidArgumentError("messages[0].content is x", reason="X", field="messages[0].content"),
         "invalid_prompt", "x"),
    ],
)  # fmt: skip
def test_a_stream_that_fails_says_so_and_what_there_is(
    error: LoramuxError, code: str, theirs: str
) -> None:
    *_, failure, failed = reported(
        answer(), piece(text="s"), end=lambda events: events.failure(error)
    )
    assert (failure["type"], failure["code"]) == ("error", theirs)
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", code)
    assert response["error"]["message"] == failure["message"]
    (item,) = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "s")


@pytest.mark.parametrize("items", [
    pytest.param([CALL, *[SAY] * 150_000], id="texts"),
    pytest.param([CALL] * 150_000, id="calls"),
    pytest.param([{**THINK, "content": [{"text": "t" * (16 << 20)}]}, *[THINK] * 30_000],
                 id="thoughts"),
])  # fmt: skip
def test_what_many_items_take_grows_with_their_number(items: Any) -> None:
    started = time.process_time()
    conversation_of(None, items)
    assert time.process_time() - started < 8
