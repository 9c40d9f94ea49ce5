"""What the gateway asks of the server, and what it does not ask at all."""

from typing import Any

import msgspec
import pytest

from loramux.errors import InvalidArgumentError
from loramux.gateway.asked import MAX_TOLD, asked_by_completion
from loramux.gateway.body import CompletionBody, parse


def body(**fields: Any) -> CompletionBody:
    return parse(msgspec.json.encode({"model": "base", **fields}), CompletionBody)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_what_is_told_of_all_prompts_and_choices_is_bounded(field: str) -> None:
    options = {"echo": True, "logprobs": 1} if field == "logprobs" else {field: 1}
    prompt = [5] * (MAX_TOLD // 16)
    assert len(asked_by_completion(body(prompt=[prompt] * 8, **options), "base", "")) == 8
    for more in ({"prompt": [prompt] * 9}, {"prompt": [prompt] * 8, "n": 2}):
        with pytest.raises(InvalidArgumentError) as caught:
            asked_by_completion(body(**more, **options), "base", "")
        assert caught.value.field == field
        assert f"expected {MAX_TOLD} at most" in str(caught.value)
    # Who has nothing told may ask for as much as ever.
    assert len(asked_by_completion(body(prompt=[prompt] * 9, n=8), "base", "")) == 9
