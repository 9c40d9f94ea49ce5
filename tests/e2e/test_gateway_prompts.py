"""What the gateway tells of prompts: `echo`, `prompt_logprobs`, and how much was cached."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from loramux import Client, Message
from loramux.types import PositionLogprobs
from tests.e2e.test_gateway import named
from tests.support.gateway import RunningGateway
from tests.support.server import RunningServer

TEXT = "Löwe 🦁, Once"
TOKENS = [10, 11, 12, 240, 13]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 3}
TALK: list[Message] = [{"role": "user", "content": "Who are you?"}]


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


def joined(positions: tuple[PositionLogprobs, ...]) -> str:
    return b"".join(each.chosen.utf8 for each in positions).decode("utf-8", "replace")


@pytest.mark.parametrize("model", ["base", "plain"])
@pytest.mark.parametrize("prompt", [TEXT, TOKENS], ids=["text", "tokens"])
@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_has_the_prompt_and_its_log_probabilities_first(
    client: openai.OpenAI, direct: Client, model: str, prompt: Any, max_tokens: int, stream: bool
) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens, "logprobs": 2}
    wanted = direct.generate(prompt, adapter=adapter(model), prompt_logprobs=2, **options)
    positions = (*wanted.prompt_logprobs, *wanted.logprobs)
    before = prompt if isinstance(prompt, str) else joined(wanted.prompt_logprobs)
    text, reasons = "", []
    tokens: list[str] = []
    numbers: list[float | None] = []
    top: list[dict[str, float] | None] = []
    offsets: list[int] = []
    found: Any = client.completions.create(
        model=model, prompt=prompt, echo=True, stream=stream, **options
    )
    for piece in found if stream else [found]:
        (choice,) = piece.choices
        text += choice.text
        reasons.append(choice.finish_reason)
        if reported := choice.logprobs:
            tokens += reported.tokens
            numbers += reported.token_logprobs
            top += reported.top_logprobs
            offsets += reported.text_offset
    assert text == before + wanted.text
    assert reasons[-1] == wanted.finish_reason
    assert tokens == [named(each.chosen) for each in positions]
    assert (numbers[0], top[0]) == (None, None)
    assert numbers[1:] == pytest.approx([each.chosen.logprob for each in positions[1:]], abs=1e-4)
    for own, each in zip(top[1:], positions[1:], strict=True):
        assert own == pytest.approx({named(one): one.logprob for one in each.top}, abs=1e-4)
    assert offsets == sorted(offsets)
    if max_tokens:
        assert offsets[len(wanted.prompt_logprobs)] == len(before)
    # Where a token of a text begins, all is written that the bytes before it are.
    if isinstance(prompt, str):
        written = b""
        for offset, each in zip(offsets, wanted.prompt_logprobs, strict=False):
            assert text[:offset] == written.decode("utf-8", "ignore")
            written += each.chosen.utf8
        assert written.decode() == prompt


def test_an_echo_without_log_probabilities_is_text_alone(
    client: openai.OpenAI, direct: Client
) -> None:
    for prompt in (TEXT, TOKENS):
        given: Any = prompt
        before = TEXT if prompt is TEXT else joined(
            direct.generate(given, prompt_logprobs=0, max_tokens=0).prompt_logprobs
        )  # fmt: skip
        wanted = direct.generate(given, **GREEDY).text
        found = client.completions.create(model="base", prompt=given, echo=True, **GREEDY)
        assert (found.choices[0].text, found.choices[0].logprobs) == (before + wanted, None)
        found = client.completions.create(
            model="base", prompt=given, echo=True, temperature=0, max_tokens=0
        )
        assert (found.choices[0].text, found.choices[0].logprobs) == (before, None)
        assert found.usage and (found.usage.completion_tokens, found.choices[0].finish_reason) == (
            0, "length",
        )  # fmt: skip


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_of_a_truncated_prompt_is_what_remains(
    client: openai.OpenAI, logprobs: int | None, stream: bool
) -> None:
    found: Any = client.completions.create(
        model="base", prompt=TEXT, echo=True, logprobs=logprobs, stream=stream, **GREEDY,
        extra_body={"truncate_prompt_tokens": 5},
    )  # fmt: skip
    choices = [piece.choices[0] for piece in (found if stream else [found])]
    text = "".join(choice.text for choice in choices)
    assert text.startswith(" Once")
    if logprobs is not None:
        offsets = [each for choice in choices for each in choice.logprobs.text_offset]
        assert offsets[:5] == [0, 1, 2, 3, 4]


def test_every_choice_of_every_prompt_begins_with_its_prompt(client: openai.OpenAI) -> None:
    prompts = ["Once", "Twice upon"]
    options: dict[str, Any] = {"n": 2, "max_tokens": 3, "seed": 7, "echo": True, "logprobs": 0}
    found = client.completions.create(model="plain", prompt=prompts, **options)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    for place, choice in enumerate(found.choices):
        assert choice.text.startswith(prompts[place // 2])
        reported = choice.logprobs
        assert reported and reported.token_logprobs and reported.token_logprobs[0] is None
        assert None not in reported.token_logprobs[1:]
    assert found.choices[0].text != found.choices[1].text
    texts = [""] * 4
    pieces = client.completions.create(model="plain", prompt=prompts, stream=True, **options)
    for piece in pieces:
        for choice in piece.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in found.choices]


def test_prompt_logprobs_are_as_vllm_has_them(client: openai.OpenAI, direct: Client) -> None:
    wanted = direct.generate(TEXT, adapter="plain", prompt_logprobs=2, **GREEDY)
    asked: dict[str, Any] = {"extra_body": {"prompt_logprobs": 2}}
    choice = client.completions.create(model="plain", prompt=TEXT, **GREEDY, **asked).choices[0]
    assert (choice.text, choice.logprobs) == (wanted.text, None)
    check_as_vllm((choice.model_extra or {})["prompt_logprobs"], wanted.prompt_logprobs)
    messages: Any = TALK
    spoken = direct.chat(TALK, prompt_logprobs=2, **GREEDY)
    found = client.chat.completions.create(model="base", messages=messages, **GREEDY, **asked)
    assert found.choices[0].message.content == spoken.text
    check_as_vllm((found.model_extra or {})["prompt_logprobs"], spoken.prompt_logprobs)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt="x", stream=True, **asked)
    assert (caught.value.param, caught.value.code) == ("prompt_logprobs", "unsupported_parameter")


def check_as_vllm(found: Any, wanted: tuple[PositionLogprobs, ...]) -> None:
    assert found[0] is None
    for own, each in zip(found[1:], wanted[1:], strict=True):
        assert next(iter(own)) == str(each.chosen.token_id)
        assert own[str(each.chosen.token_id)]["rank"] == each.rank
        assert set(own) == {str(one.token_id) for one in (each.chosen, *each.top)}
        for rank, one in [(each.rank, each.chosen), *enumerate(each.top, 1)]:
            assert own[str(one.token_id)] == {
                "logprob": pytest.approx(one.logprob, abs=1e-4), "rank": rank,
                "decoded_token": one.utf8.decode("utf-8", "replace"),
            }  # fmt: skip


def test_usage_reports_what_was_in_the_prefix_cache(client: openai.OpenAI) -> None:
    prompt = "Said once, and then said again in the very same words: " * 2
    cached = []
    for _ in range(2):
        found = client.completions.create(model="own", prompt=prompt, **GREEDY)
        details = found.usage and found.usage.prompt_tokens_details
        assert found.usage and details and details.cached_tokens is not None
        cached.append(details.cached_tokens)
        assert 0 <= details.cached_tokens < found.usage.prompt_tokens
    assert cached[0] == 0 < cached[1]
    found = client.completions.create(
        model="own", prompt=prompt, echo=True, logprobs=0, temperature=0, max_tokens=0
    )
    assert found.usage and found.usage.prompt_tokens_details
    assert found.usage.prompt_tokens_details.cached_tokens == 0
