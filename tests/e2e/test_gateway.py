"""OpenAI's client, a real gateway and a real server: what comes is what gRPC gives."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from loramux import Client, Message
from loramux.types import TokenLogprob
from tests.support.certificates import Authority
from tests.support.gateway import RunningGateway
from tests.support.server import RunningServer

TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
]
SAMPLED: dict[str, Any] = {"max_tokens": 12, "seed": 7, "temperature": 0.9, "top_p": 0.95}
MODELS = ["base", "plain", "plain:1", "public/plain", "strict:latest"]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


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
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as client:
        yield client


def adapter(model: str) -> str | None:
    return None if model == "base" else model


def test_models_are_the_base_and_its_adapters(client: openai.OpenAI, direct: Client) -> None:
    found = {model.id: model for model in client.models.list()}
    assert {"base", "plain", "own", "strict"} <= set(found)
    plain = direct.adapters.get("plain")
    assert found["plain"].created == int(plain.created_at.timestamp())
    assert (found["plain"].owned_by, found["plain"].object) == ("public", "model")
    assert (found["plain"].model_extra or {})["parent"] == "base"
    assert (found["plain"].model_extra or {})["digest"] == plain.digest
    assert client.models.retrieve("public/plain:1").id == "public/plain:1"
    assert client.models.retrieve(f"plain@{plain.digest}").owned_by == "public"
    assert (client.models.retrieve("base").model_extra or {})["parent"] is None
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("model", MODELS)
def test_a_completion_is_what_grpc_gives(client: openai.OpenAI, direct: Client, model: str) -> None:
    wanted = direct.generate("Once", adapter=adapter(model), **SAMPLED)
    found = client.completions.create(model=model, prompt="Once", **SAMPLED)
    assert found.choices[0].text == wanted.text
    assert found.choices[0].finish_reason == wanted.finish_reason
    assert found.usage and (found.usage.prompt_tokens, found.usage.completion_tokens) == (
        wanted.usage.prompt_tokens, wanted.usage.completion_tokens,
    )  # fmt: skip
    assert (found.model, found.system_fingerprint) == (model, direct.info().fingerprint)
    stream = client.completions.create(model=model, prompt="Once", stream=True, **SAMPLED)
    assert "".join(chunk.choices[0].text for chunk in stream) == wanted.text


@pytest.mark.parametrize("model", MODELS)
def test_a_chat_is_what_grpc_gives(client: openai.OpenAI, direct: Client, model: str) -> None:
    wanted = direct.chat(TALK, adapter=adapter(model), **SAMPLED)
    messages: Any = TALK
    found = client.chat.completions.create(model=model, messages=messages, **SAMPLED)
    assert (found.choices[0].message.role, found.choices[0].message.content) == (
        "assistant", wanted.text,
    )  # fmt: skip
    chunks = list(
        client.chat.completions.create(
            model=model, messages=messages, stream=True, **SAMPLED,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    reported = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in reported) == wanted.text
    assert [choice.delta.role for choice in reported] == ["assistant"] + [None] * (
        len(reported) - 1
    )
    assert [choice.finish_reason for choice in reported if choice.finish_reason] == [
        wanted.finish_reason
    ]
    assert chunks[-1].usage == found.usage


def test_a_stream_may_count_in_each_chunk(client: openai.OpenAI) -> None:
    prompts = ["Once", "Twice upon"]

    def chunks(**given: bool) -> list[Any]:
        options: Any = given
        return list(
            client.completions.create(
                model="plain", prompt=prompts, n=2, stream=True, **SAMPLED,
                stream_options=options,
            )
        )  # fmt: skip

    *pieces, last = chunks(include_usage=True, continuous_usage_stats=True)
    tokens = [0] * 4
    for piece in pieces:
        (choice,) = piece.choices
        usage = piece.usage
        assert usage.prompt_tokens == len(prompts[choice.index // 2])
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens > tokens[choice.index] or choice.finish_reason
        tokens[choice.index] = usage.completion_tokens
    assert sum(tokens) == last.usage.completion_tokens
    assert not any(piece.usage for piece in chunks(continuous_usage_stats=True))
    assert not any(piece.usage for piece in chunks(include_usage=True)[:-1])


def test_a_prediction_changes_no_answer(client: openai.OpenAI, direct: Client) -> None:
    wanted = direct.chat(TALK, adapter="plain", **SAMPLED)
    messages: Any = TALK
    for content in (wanted.text, [{"type": "text", "text": "something else"}]):
        prediction: Any = {"type": "content", "content": content}
        found = client.chat.completions.create(
            model="plain", messages=messages, prediction=prediction, **SAMPLED
        )
        assert found.choices[0].message.content == wanted.text


async def test_the_asynchronous_client_streams_many_at_once(
    gateway: RunningGateway, direct: Client
) -> None:
    asked = [(MODELS[number % len(MODELS)], f"Tell {number}") for number in range(64)]
    wanted = [
        direct.generate(prompt, adapter=adapter(model), max_tokens=6, temperature=0).text
        for model, prompt in asked
    ]

    async def one(client: openai.AsyncOpenAI, model: str, prompt: str) -> str:
        stream = await client.completions.create(
            model=model, prompt=prompt, max_tokens=6, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with openai.AsyncOpenAI(base_url=gateway.url, api_key="none") as client:
        assert await asyncio.gather(*(one(client, *each) for each in asked)) == wanted


def test_every_prompt_has_its_choices(client: openai.OpenAI, direct: Client) -> None:
    prompts = ["Once", "Twice"]
    found = client.completions.create(model="plain", prompt=prompts, n=2, **SAMPLED)
    wanted = [
        completion.text
        for prompt in prompts
        for completion in direct.generate(prompt, adapter="plain", n=2, **SAMPLED).completions
    ]
    assert [choice.text for choice in found.choices] == wanted
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    texts = ["", "", "", ""]
    stream = client.completions.create(
        model="plain", prompt=prompts, n=2, stream=True, stream_options={"include_usage": True},
        **SAMPLED,
    )  # fmt: skip
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == wanted
    assert chunk.usage == found.usage


def test_tokens_are_a_prompt_and_an_answer(client: openai.OpenAI, direct: Client) -> None:
    tokens = [[10, 11, 12], [20, 21]]
    wanted = [direct.generate(each, **SAMPLED) for each in tokens]
    found = client.completions.create(
        model="base", prompt=tokens, extra_body={"return_token_ids": True}, **SAMPLED
    )
    assert [(choice.model_extra or {})["token_ids"] for choice in found.choices] == [
        list(each.token_ids) for each in wanted
    ]
    one = client.completions.create(model="base", prompt=tokens[0], **SAMPLED)
    assert one.choices[0].text == wanted[0].text


def named(token: TokenLogprob) -> str:
    """What OpenAI's API calls a token."""
    try:
        return token.utf8.decode()
    except UnicodeDecodeError:
        return "bytes:" + repr(token.utf8)[2:-1]


def test_logprobs_have_both_forms(client: openai.OpenAI, direct: Client) -> None:
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0}
    wanted = direct.generate("Once", logprobs=2, **options)
    text = client.completions.create(model="base", prompt="Once", logprobs=2, **options)
    reported = text.choices[0].logprobs
    assert reported
    assert reported.tokens == [named(each.chosen) for each in wanted.logprobs]
    # What is in the prefix cache is not computed again, so the last bits may differ.
    assert reported.token_logprobs == pytest.approx(
        [each.chosen.logprob for each in wanted.logprobs], abs=1e-4
    )
    for found, each in zip(reported.top_logprobs or [], wanted.logprobs, strict=True):
        assert found == pytest.approx({named(token): token.logprob for token in each.top}, abs=1e-4)
    messages: Any = TALK
    spoken = direct.chat(TALK, logprobs=2, **options)
    chat = client.chat.completions.create(
        model="base", messages=messages, logprobs=True, top_logprobs=2, **options
    )
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content
    assert [(each.token, len(each.top_logprobs)) for each in content] == [
        (named(each.chosen), 2) for each in spoken.logprobs
    ]
    assert [bytes(each.bytes or []) for each in content] == [
        each.chosen.utf8 for each in spoken.logprobs
    ]
    assert [each.logprob for each in content] == pytest.approx(
        [each.chosen.logprob for each in spoken.logprobs], abs=1e-4
    )


def test_all_that_shapes_an_answer_arrives(client: openai.OpenAI, direct: Client) -> None:
    """Each field alone changes what comes, and as it does over gRPC."""
    ours: dict[str, Any] = {
        "temperature": 0.4, "top_p": 0.5, "presence_penalty": 2.0, "frequency_penalty": -2.0,
        "logit_bias": {33: 50.0}, "seed": 99, "max_tokens": 3, "top_k": 2, "min_p": 0.5,
        "repetition_penalty": 5.0, "stop_token_ids": list(range(40, 160)), "n": 2,
    }  # fmt: skip
    usual: dict[str, Any] = {"seed": 1, "max_tokens": 24, "temperature": 1.5}
    for name, value in ours.items():
        options = usual | {name: value}
        wanted = direct.generate("Once", **options)
        theirs = json.loads(json.dumps(options))
        found = client.completions.create(model="base", prompt="Once", extra_body=theirs)
        assert [choice.text for choice in found.choices] == [
            completion.text for completion in wanted.completions
        ], name
        assert found.choices[0].text != direct.generate("Once", **usual).text or name == "n", name


def test_a_stop_string_ends_the_text_and_may_stay(client: openai.OpenAI, direct: Client) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    texts = {prompt: direct.generate(prompt, **options).text for prompt in ("Once", "Upon", "abc")}
    prompt, whole = max(texts.items(), key=lambda pair: len(pair[1]))
    stop = whole[4:6]
    assert stop
    cut = client.completions.create(model="base", prompt=prompt, stop=stop, **options)
    kept = client.completions.create(
        model="base", prompt=prompt, stop=[stop], **options,
        extra_body={"include_stop_str_in_output": True},
    )  # fmt: skip
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (
        whole[: whole.index(stop)], "stop",
    )  # fmt: skip
    assert kept.choices[0].text == cut.choices[0].text + stop


def test_what_a_request_leaves_open_is_the_adapters(client: openai.OpenAI, direct: Client) -> None:
    found = client.completions.create(model="own", prompt="abc", seed=3)
    wanted = direct.generate("abc", adapter="own", seed=3)
    assert wanted.sampling["max_tokens"] == 4
    assert found.choices[0].text == wanted.text


def test_text_parts_are_put_together(gateway: RunningGateway, direct: Client) -> None:
    parts = [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]
    asked = {"model": "base", "temperature": 0, "max_completion_tokens": 5}
    found = gateway.post(CHAT, asked | {"messages": [{"role": "user", "content": parts}]})
    wanted = direct.chat([{"role": "user", "content": "Who are you?"}], temperature=0, max_tokens=5)
    assert found.json["choices"][0]["message"]["content"] == wanted.text


def test_an_answer_may_come_back_as_a_message(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    found = client.chat.completions.create(model="base", messages=messages, max_tokens=3)
    messages += [found.choices[0].message, {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(model="base", messages=messages, max_tokens=3).choices


def test_adapters_are_scaled_and_mixed(client: openai.OpenAI, direct: Client) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    half = client.completions.create(
        model="base", prompt="Once", **options,
        extra_body={"adapters": [{"name": "plain", "scale": 8}]},
    )  # fmt: skip
    assert half.choices[0].text == direct.generate("Once", adapter="plain", scale=8, **options).text
    mix = {"plain": 6.0, "strict": -4.0}
    found = client.completions.create(
        model="base", prompt="Once", **options,
        extra_body={
            "combination": "linear",
            "adapters": [{"name": name, "scale": weight} for name, weight in mix.items()],
        },
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="scale is 11"):
        client.completions.create(
            model="base", prompt="x", extra_body={"adapters": [{"name": "plain", "scale": 11}]}
        )
    wanted = direct.generate("Once", adapters=mix, combination="linear", **options)
    assert found.choices[0].text == wanted.text


def test_an_answer_says_which_version_it_is_of(gateway: RunningGateway, direct: Client) -> None:
    digest = direct.adapters.get("plain").digest
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = {"model": "plain", "prompt": "x", "max_tokens": 1}
    for stream in (False, True):
        found = gateway.post(
            TEXT, body | {"stream": stream}, x_request_id="mine", traceparent=trace
        )
        assert found.headers["x-loramux-adapter"] == f"public/plain:1@{digest}"
        assert found.headers["x-request-id"] == "mine"
        assert found.headers["traceparent"] == trace
        reported = found.events[0] if stream else found.json
        assert reported["id"] == "cmpl-mine"
    found = gateway.post(TEXT, body | {"model": "base"})
    assert "x-loramux-adapter" not in found.headers
    assert len(found.headers["x-request-id"]) == 24


HELLO = [{"role": "user", "content": "Hi"}]
REFUSED: list[tuple[str, Any, int, str | None, str]] = [
    # route, what is wrong, status, param, code
    (TEXT, {"model": None}, 400, "model", "missing_required_parameter"),
    (TEXT, {"prompt": None}, 400, "prompt", "missing_required_parameter"),
    (CHAT, {"messages": None}, 400, "messages", "missing_required_parameter"),
    (TEXT, {"model": "nobody"}, 404, "model", "model_not_found"),
    (TEXT, {"model": "plain:9"}, 404, "model", "model_not_found"),
    (TEXT, {"model": "gpt-4o"}, 404, "model", "model_not_found"),
    (CHAT, {"model": "Org/Some-Model"}, 404, "model", "model_not_found"),
    (CHAT, {"model": ""}, 404, "model", "model_not_found"),
    (TEXT, {"adapters": [{"name": "nobody"}]}, 404, "model", "model_not_found"),
    (TEXT, {"adapters": []}, 400, "adapters", "invalid_field"),
    (TEXT, {"adapters": [{"nam": "x"}]}, 400, "adapters[0]", "invalid_field"),
    (TEXT, {"model": "plain", "adapters": [{"name": "own"}]}, 400, "model", "invalid_field"),
    (TEXT, {"combination": "cat"}, 400, "combination", "invalid_field"),
    (TEXT, {"temperature": "hot"}, 400, "temperature", "invalid_field"),
    (TEXT, {"temperature": -1}, 400, "temperature", "invalid_field"),
    (CHAT, {"top_p": 1.5}, 400, "top_p", "invalid_field"),
    (TEXT, {"max_tokens": 0}, 400, "max_tokens", "invalid_field"),
    (TEXT, {"max_tokens": 1 << 40}, 400, "max_tokens", "invalid_field"),
    (TEXT, {"max_tokens": 512}, 400, "max_tokens", "context_length_exceeded"),
    (TEXT, {"prompt": "x" * 600}, 400, "prompt", "context_length_exceeded"),
    (TEXT, {"n": 65}, 400, "n", "invalid_field"),
    (TEXT, {"n": True}, 400, "n", "invalid_field"),
    (TEXT, {"best_of": 2}, 400, "best_of", "unsupported_parameter"),
    (TEXT, {"use_beam_search": True}, 400, "use_beam_search", "invalid_field"),
    (TEXT, {"use_beam_search": True, "best_of": 11}, 400, "best_of", "invalid_field"),
    (CHAT, {"use_beam_search": True, "n": 2, "top_k": 3}, 400, "top_k", "invalid_field"),
    (TEXT, {"length_penalty": 0.5}, 400, "length_penalty", "invalid_field"),
    (CHAT, {"echo": True}, 400, "echo", "unsupported_parameter"),
    (TEXT, {"echo": True, "max_tokens": 0, "n": 2}, 400, "n", "invalid_field"),
    (TEXT, {"echo": True, "logprobs": 21}, 400, "logprobs", "invalid_field"),
    (TEXT, {"echo": "yes"}, 400, "echo", "invalid_field"),
    (TEXT, {"prompt_logprobs": "1"}, 400, "prompt_logprobs", "invalid_field"),
    (TEXT, {"suffix": "."}, 400, "suffix", "unsupported_parameter"),
    (TEXT, {"logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_field"),
    (TEXT, {"logit_bias": {"1": 101}}, 400, "logit_bias[1]", "invalid_field"),
    (TEXT, {"prompt": []}, 400, "prompt", "invalid_field"),
    (TEXT, {"prompt": ""}, 400, "prompt", "invalid_field"),
    (TEXT, {"prompt": ["a", []]}, 400, "prompt", "invalid_field"),
    (TEXT, {"prompt": [True]}, 400, "prompt", "invalid_field"),
    (TEXT, {"prompt": ["x"] * 65}, 400, "prompt", "invalid_field"),
    (TEXT, {"prompt": [99999]}, 400, "prompt", "invalid_field"),
    (TEXT, {"user": "x" * 257}, 400, "user", "invalid_field"),
    (TEXT, {"timeout": 0}, 400, "timeout", "invalid_field"),
    (TEXT, {"timeout": 86_401}, 400, "timeout", "invalid_field"),
    (CHAT, {"timeout": 1e10}, 400, "timeout", "invalid_field"),
    (TEXT, {"stream": False, "stream_options": {}}, 400, "stream_options", "invalid_field"),
    (TEXT, {"stream_options": {"x": 1}}, 400, "stream_options", "invalid_field"),
    (TEXT, {"stream": "yes"}, 400, "stream", "invalid_field"),
    (TEXT, {"routing_key": "x"}, 400, "routing_key", "unknown_parameter"),
    (TEXT, {"name": "x"}, 400, "name", "unknown_parameter"),
    (TEXT, {"temprature": 1}, 400, "temprature", "unknown_parameter"),
    (TEXT, {"messages": HELLO}, 400, "messages", "unknown_parameter"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools[0]", "invalid_field"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice", "invalid_field"),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "x"}}}, 400,
     "tool_choice.function.name", "invalid_field"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400,
     "tools[0].function.name", "invalid_field"),
    (CHAT, {"response_format": {"type": "xml"}}, 400, "response_format.type", "invalid_field"),
    (CHAT, {"response_format": {"type": "json_schema"}}, 400, "response_format", "invalid_field"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
     400, "response_format", "invalid_field"),
    (TEXT, {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
     400, "structured_outputs", "invalid_field"),
    (TEXT, {"structured_outputs": {"regex": "("}}, 400, "structured_outputs.regex",
     "invalid_field"),
    (TEXT, {"structured_outputs": {"choice": []}}, 400, "structured_outputs.choice",
     "invalid_field"),
    (TEXT, {"structured_outputs": {"jso": {}}}, 400, "structured_outputs", "invalid_field"),
    (TEXT, {"structured_outputs": {"json": {"type": "x"}}}, 400, "structured_outputs.json",
     "invalid_field"),
    (TEXT, {"structured_outputs": {"json": "{"}}, 400, "structured_outputs.json", "invalid_field"),
    (TEXT, {"structured_outputs": {"json": {}, "json_object": True}}, 400, "structured_outputs",
     "invalid_field"),
    (TEXT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
            "structured_outputs": {"json": {}}}, 400, "structured_outputs", "invalid_field"),
    (TEXT, {"structured_outputs": {"regex": "a"}, "min_tokens": 2}, 400, "min_tokens",
     "invalid_field"),
    (CHAT, {"prediction": "x"}, 400, "prediction", "invalid_field"),
    (CHAT, {"prediction": {"type": "content", "content": [{"type": "image_url"}]}}, 400,
     "prediction.content[0]", "unsupported_parameter"),
    (TEXT, {"prediction": {"type": "content", "content": "x" * 600}}, 400, "prediction",
     "invalid_field"),
    (CHAT, {"modalities": ["audio"]}, 400, "modalities", "unsupported_parameter"),
    (CHAT, {"top_logprobs": 2}, 400, "top_logprobs", "invalid_field"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_field"),
    (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens", "invalid_field"),
    (CHAT, {"max_tokens": None, "max_completion_tokens": -1}, 400, "max_completion_tokens",
     "invalid_field"),
    (CHAT, {"use_beam_search": True, "n": 11}, 400, "n", "invalid_field"),
    (TEXT, {"use_beam_search": True, "n": 11}, 400, "n", "invalid_field"),
    (CHAT, {"messages": []}, 400, "messages", "invalid_field"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "invalid_field"),
    (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role",
     "invalid_field"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     400, "messages[0].content[0]", "invalid_field"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": "me"}]}, 400, "messages[0]",
     "invalid_field"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(gateway: RunningGateway, stream: bool) -> None:
    for path, wrong, status, param, code in REFUSED:
        right = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
        body = {"model": "base", "max_tokens": 2, "stream": stream} | right | wrong
        found = gateway.post(path, body)
        assert found.status == status, (wrong, found.body)
        assert (found.error["param"], found.error["code"]) == (param, code), wrong
        assert found.error["type"] == "invalid_request_error"
        for ours in ("sampling", "routing_key is", "prompt_token_ids"):
            assert ours not in found.error["message"], wrong


def test_beams_are_searched_as_vllm_is_asked(client: openai.OpenAI, direct: Client) -> None:
    wanted = direct.generate(
        "Once", adapter="plain", num_beams=4, n=2, length_penalty=0.5, max_tokens=8
    )
    texts = [completion.text for completion in wanted.completions]
    extra = {"use_beam_search": True, "length_penalty": 0.5}
    asked: dict[str, Any] = {
        "model": "plain", "prompt": "Once", "n": 2, "best_of": 4, "max_tokens": 8, "temperature": 0,
        "extra_body": extra,
    }  # fmt: skip
    found = client.completions.create(**asked)
    assert [choice.text for choice in found.choices] == texts
    assert found.usage and found.usage.completion_tokens == wanted.usage.completion_tokens
    pieces = [choice for piece in client.completions.create(**asked, stream=True)
              for choice in piece.choices]  # fmt: skip
    assert [choice.text for choice in pieces] == texts


def test_what_asks_for_nothing_is_taken(gateway: RunningGateway) -> None:
    body = {
        "model": "base", "messages": HELLO, "max_tokens": 1, "store": True, "metadata": {"a": "b"},
        "service_tier": "auto", "user": "me", "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "temperature": None, "n": 1,
    }  # fmt: skip
    assert gateway.post(CHAT, body).status == 200
    options = {"include_usage": True, "include_obfuscation": False}
    said: dict[str, Any] = {
        "role": "assistant",
        "content": "Ho",
        "refusal": None,
        "annotations": [],
        "audio": None,
    }
    talk = [HELLO[0] | {"name": "me"}, said, HELLO[0]]
    body |= {"messages": talk, "stream": True, "stream_options": options}
    assert gateway.post(CHAT, body).status == 200
    body = {
        "model": "base", "prompt": "x", "echo": False, "suffix": "", "best_of": 1,
        "timeout": 86_400,
    }  # fmt: skip
    assert gateway.post(TEXT, body).status == 200


def test_a_text_has_the_form_that_is_asked_for(gateway: RunningGateway) -> None:
    schema = {"name": "a", "schema": {"enum": ["x y"]}, "strict": True}
    forms: list[tuple[dict[str, Any], str]] = [
        ({"response_format": {"type": "json_schema", "json_schema": schema}}, '"x y"'),
        ({"response_format": {"type": "json_object"}, "max_tokens": 4}, r"\{(.|\n)*"),
        ({"structured_outputs": {"json": schema["schema"], "regex": None}}, '"x y"'),
        ({"structured_outputs": {"json": '{"enum": ["x y"]}', "json_object": False}}, '"x y"'),
        ({"structured_outputs": {"json_object": True}, "max_tokens": 4}, r"\{(.|\n)*"),
        ({"structured_outputs": {"regex": "[a-c]{3}"}}, "[a-c]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, "ab"),
    ]  # fmt: skip
    for form, pattern in forms:
        body = {"model": "base", **form}
        (choice,) = gateway.post(TEXT, {"prompt": "x", **body}).json["choices"]
        assert re.fullmatch(pattern, choice["text"]), form
        (choice,) = gateway.post(CHAT, {"messages": HELLO, **body}).json["choices"]
        assert re.fullmatch(pattern, choice["message"]["content"]), form


def test_what_is_no_request_is_refused(gateway: RunningGateway) -> None:
    for body, status, code in (
        (b"{", 400, "malformed_request"),
        (b'"text"', 400, "malformed_request"),
        (b"[" * 100_000, 400, "malformed_request"),
        (b'{"model": "\\ud800"}', 400, "malformed_request"),
        (b'{"model": "\xff"}', 400, "malformed_request"),
        (b" " * ((4 << 20) + 1), 413, "body_too_large"),
    ):
        found = gateway.post(TEXT, body)
        assert (found.status, found.error["code"]) == (status, code)
    found = gateway.post(TEXT, b"{}", content_type="text/plain")
    assert (found.status, found.error["code"]) == (415, "unsupported_media_type")
    found = gateway.post(TEXT, b"{}", content_encoding="gzip")
    assert (found.status, found.error["code"]) == (415, "unsupported_media_type")
    assert found.error["message"] == "content-encoding is 'gzip'; expected an uncompressed body"
    assert gateway.get(TEXT).status == 405
    found = gateway.get("/v1/nothing")
    assert (found.status, found.error["code"]) == (404, "not_found")


def test_a_server_without_keys_is_not_shown_to_other_machines(
    chat_server: RunningServer, tmp_path: Path
) -> None:
    pair = [str(path) for path in Authority(tmp_path).issue("here")]
    arguments = ("--host", "0.0.0.0", "--tls-cert", pair[0], "--tls-key", pair[1])
    gateway = RunningGateway(tmp_path, chat_server.target, *arguments)
    with pytest.raises(AssertionError, match="the server has no API keys"):
        gateway.start()
    assert gateway.stop() == 78
    assert len(gateway.log.read_text().splitlines()) == 1


def test_the_log_stays_empty(gateway: RunningGateway) -> None:
    assert Path(gateway.log).read_text() == ""
