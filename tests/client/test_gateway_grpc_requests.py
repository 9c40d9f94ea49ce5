"""What the gateway asks of the server, and what it does not ask at all."""

from typing import Any

import msgspec
import pytest

from loramux.errors import InvalidArgumentError
from loramux.gateway.body import Body, ChatBody, CompletionBody
from loramux.gateway.grpc_requests import MAX_PROMPT_LOGPROBS, chat_requests, completion_requests
from loramux.gateway.parsing import parse


def body(**fields: Any) -> CompletionBody:
    return parse(msgspec.json.encode({"model": "base", **fields}), CompletionBody)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_what_is_returned_for_all_prompts_and_choices_is_bounded(field: str) -> None:
    options = {"echo": True, "logprobs": 1} if field == "logprobs" else {field: 1}
    prompt = [5] * (MAX_PROMPT_LOGPROBS // 16)
    assert len(completion_requests(body(prompt=[prompt] * 8, **options), "base", "")) == 8
    for more in ({"prompt": [prompt] * 9}, {"prompt": [prompt] * 8, "n": 2}):
        with pytest.raises(InvalidArgumentError) as caught:
            completion_requests(body(**more, **options), "base", "")
        assert caught.value.field == field
        assert f"expected at most {MAX_PROMPT_LOGPROBS}" in str(caught.value)
    # Who has nothing told may ask for as much as ever.
    assert len(completion_requests(body(prompt=[prompt] * 9, n=8), "base", "")) == 9


def test_what_is_returned_for_prompts_with_images_is_bounded() -> None:
    def asked(**options: int) -> int:
        image = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGOA=="}}
        talk = {"model": "base", "messages": [{"role": "user", "content": [image]}], **options}
        return len(chat_requests(parse(msgspec.json.encode(talk), ChatBody), "base"))

    # Only the server knows how many tokens stand for an image.
    assert asked(prompt_logprobs=1, n=4) == asked(n=8) == 1
    with pytest.raises(InvalidArgumentError, match="expected at most 1048576"):
        asked(prompt_logprobs=1, n=5)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("def f():\n    return 1\n", "def f():\n    return 1\n"),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ("", ""),
        ([], ""),
    ],
)
def test_a_prediction_goes_along_with_each_prompt(content: object, text: str) -> None:
    prediction = {"type": "content", "content": content}
    asked = completion_requests(body(prompt=["x", [5]], prediction=prediction), "base", "")
    talk = {
        "model": "base", "messages": [{"role": "user", "content": "x"}], "prediction": prediction,
    }  # fmt: skip
    asked += chat_requests(parse(msgspec.json.encode(talk), ChatBody), "base")
    assert [request.prediction for request in asked] == [text] * 3


@pytest.mark.parametrize(
    ("prediction", "param", "says"),
    [
        ("text", "prediction", "object"),
        ({"content": "x"}, "prediction", "type"),
        ({"type": "content"}, "prediction", "content"),
        ({"type": "tokens", "content": "x"}, "prediction.type", "'tokens'"),
        ({"type": "content", "content": 3}, "prediction.content", "int"),
        ({"type": "content", "content": ["x"]}, "prediction.content[0]", "object"),
        ({"type": "content", "content": "x", "n": 1}, "prediction", "n"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content[0]", "string"),
        ({"type": "content", "content": [{"type": "image", "text": "x"}]},
         "prediction.content[0]", "'image'"),
    ],
)  # fmt: skip
def test_a_prediction_of_another_shape_is_refused_by_name(
    prediction: object, param: str, says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        completion_requests(body(prompt="x", prediction=prediction), "base", "")
    assert caught.value.field == param


def test_beams_are_as_many_as_the_best_are_of() -> None:
    def asked(kind: type[Body] = CompletionBody, **fields: Any) -> tuple[int, int, float | None]:
        given = {"model": "base", "use_beam_search": True, **fields}
        read = parse(msgspec.json.encode(given), kind)
        if isinstance(read, ChatBody):
            (request,) = chat_requests(read, "base")
        else:
            assert isinstance(read, CompletionBody)
            (request,) = completion_requests(read, "base", "")
        sent = request.sampling
        penalty = sent.length_penalty if sent.HasField("length_penalty") else None
        return sent.num_beams, sent.n, penalty

    talk = [{"role": "user", "content": "x"}]
    assert asked(prompt="x", n=3) == (3, 3, None)
    assert asked(prompt="x", best_of=4, length_penalty=0.5) == (4, 0, 0.5)
    assert asked(prompt="x", best_of=4, n=2) == (4, 2, None)
    assert asked(ChatBody, messages=talk, n=2) == (2, 2, None)
    for fields, param in (
        ({}, "use_beam_search"),
        ({"best_of": 1}, "use_beam_search"),
        ({"use_beam_search": False, "length_penalty": 1.0}, "length_penalty"),
        ({"use_beam_search": False, "best_of": 2}, "best_of"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            asked(prompt="x", **fields)
        assert caught.value.field == param


def talk(**fields: Any) -> ChatBody:
    messages = [{"role": "user", "content": "x"}]
    return parse(msgspec.json.encode({"model": "base", "messages": messages, **fields}), ChatBody)


def test_an_effort_is_a_variable_of_the_chat_template() -> None:
    def variables(**fields: Any) -> dict[str, Any]:
        (asked,) = chat_requests(talk(**fields), "base")
        found: dict[str, Any] = msgspec.json.decode(asked.chat_template_kwargs or "{}")
        return found

    assert variables() == {}
    assert variables(reasoning_effort="low") == {"reasoning_effort": "low"}
    assert variables(reasoning_effort="none") == {
        "reasoning_effort": "none", "enable_thinking": False,
    }  # fmt: skip
    given = {"reasoning_effort": "high", "deep": 1}  # the variable itself has the last word
    assert variables(reasoning_effort="low", chat_template_kwargs=given) == given
    with pytest.raises(InvalidArgumentError, match="reasoning_effort is 'huge'; expected 'none'"):
        variables(reasoning_effort="huge")
    with pytest.raises(InvalidArgumentError, match="reasoning_effort is not supported"):
        body(prompt="x", reasoning_effort="low")  # a text has no template


def test_a_priority_goes_along() -> None:
    asked = chat_requests(talk(priority=-7), "base")
    asked += completion_requests(body(prompt=["x", "y"], priority=-7), "base", "")
    assert [request.priority for request in asked] == [-7] * 3
    for value, wanted in ((1 << 31, "int <= 2147483647"), (0.5, "int, got float")):
        with pytest.raises(InvalidArgumentError, match=f"priority: expected {wanted}") as caught:
            talk(priority=value)
        assert caught.value.field == "priority"


def test_fields_of_vllm_go_along() -> None:
    fields: dict[str, Any] = {
        "cache_salt": "s", "bad_words": ["x", " y"], "truncate_prompt_tokens": -1,
    }  # fmt: skip
    asked = chat_requests(talk(**fields), "base")
    asked += completion_requests(body(prompt=["x", [5]], **fields), "base", "")
    assert len(asked) == 3
    for request in asked:
        assert (request.cache_salt, list(request.sampling.bad_words)) == ("s", ["x", " y"])
        assert request.truncate_prompt_tokens == -1
    (plain,) = chat_requests(talk(), "base")
    assert not plain.HasField("truncate_prompt_tokens")
    with pytest.raises(InvalidArgumentError, match="cache_salt: expected str of length >= 1"):
        talk(cache_salt="")


def test_fields_of_vllm_may_have_their_defaults_alone() -> None:
    defaults: dict[str, Any] = {
        "spaces_between_special_tokens": True, "truncate_prompt_tokens": None,
        "cache_salt": None, "bad_words": [], "vllm_xargs": {}, "include_reasoning": True,
        "continue_final_message": False, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": False},
    }  # fmt: skip
    assert len(chat_requests(talk(**defaults, add_special_tokens=False), "base")) == 1
    assert len(completion_requests(body(prompt="x", **defaults), "base", "")) == 1
    field = "spaces_between_special_tokens"
    with pytest.raises(InvalidArgumentError, match=f"{field} is not supported") as caught:
        talk(**{field: False})
    assert caught.value.field == field
