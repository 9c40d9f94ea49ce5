"""Fields that requests to vLLM have, over the real socket: bad words, truncation, cache salts."""

from collections.abc import Iterator
from typing import Any

import pytest

from loramux import Client
from loramux.errors import InvalidArgumentError
from tests.support.models import bytes_of
from tests.support.server import RunningServer

CONTEXT = 256
START = 1
"""What the tokenizer puts before a text."""
SAMPLED: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 120}


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def letters(text: str) -> dict[int, float]:
    """A bias that leaves nothing but the characters of `text`."""
    return dict.fromkeys(bytes_of(text), 100.0)


# Bad words


@pytest.mark.parametrize("adapter", [None, "wide"])
def test_bad_words_are_not_generated(client: Client, adapter: str | None) -> None:
    words = ["ab", "cc", "bca"]
    options = SAMPLED | {"adapter": adapter, "seed": 5, "logit_bias": letters("abc ")}
    plain = client.generate("hello", **options).text
    assert all(word in plain for word in words)
    done = client.generate("hello", bad_words=words, **options)
    assert not any(word in done.text for word in words)
    assert done.sampling["bad_words"] == words
    # Nothing changes before the first token that would complete one.
    same = next(i for i in range(len(plain)) if plain[i] != done.text[i])
    assert any(plain[: same + 1].endswith(word) for word in words)
    assert "a" not in client.generate("hello", bad_words="a", **options).text
    assert " " in plain
    assert " " not in client.generate("hello", bad_words=" ", **options).text


def test_a_bad_word_may_begin_in_the_prompt(client: Client) -> None:
    done = client.generate(
        "a", max_tokens=3, ignore_eos=True, bad_words=["ab"], logit_bias=letters("b")
    )
    assert done.text == "bbb"


def test_bad_words_count_within_structured_output_and_stop_nothing(client: Client) -> None:
    options: dict[str, Any] = {"regex": "(a|b){24}", "temperature": 1.0, "max_tokens": 30}
    plain = client.generate("hello", seed=3, **options).text
    done = client.generate("hello", seed=3, bad_words=["ab"], **options).text
    assert "ab" in plain
    assert "ab" not in done
    assert len(done) == 24


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"bad_words": ["x"] * 129}, "sampling.bad_words", "has 129 strings; expected at most 128"),
        ({"bad_words": [""]}, "sampling.bad_words", "strings of 1 to 256 bytes"),
        ({"bad_words": ["é" * 129]}, "sampling.bad_words", "strings of 1 to 256 bytes"),
        ({"bad_words": ["a"], "num_beams": 2}, "sampling.bad_words", "expected none with"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "is 0; expected an integer from"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "is -2; expected an integer"),
        ({"truncate_prompt_tokens": 1 << 31}, "truncate_prompt_tokens", "2147483648"),
        ({"cache_salt": "s" * 257}, "cache_salt", "cache_salt has 257 characters"),
    ],
)
def test_what_cannot_be_is_named(
    client: Client, fields: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.generate("hello", max_tokens=1, **fields)
    assert (caught.value.field, said in str(caught.value)) == (field, True), caught.value


# Truncation


def test_the_last_tokens_of_a_prompt_are_kept(client: Client) -> None:
    def tokens(prompt: str | list[int], most: int | None, **options: Any) -> tuple[int, ...]:
        return client.tokenize(prompt, truncate_prompt_tokens=most, **options).ids

    assert tokens("hello", None) == tokens("hello", 6) == (START, *bytes_of("hello"))
    assert tokens("hello", 4) == (START, *bytes_of("llo"))
    assert tokens("hello", 1) == tuple(bytes_of("o"))
    assert tokens("hello", 4, add_special_tokens=False) == tuple(bytes_of("ello"))
    assert tokens(bytes_of("hello"), 2) == tuple(bytes_of("lo"))


def test_a_prompt_that_is_truncated_is_as_the_rest_alone(client: Client) -> None:
    options: dict[str, Any] = {"adapter": "wide", "temperature": 0.0, "max_tokens": 16}
    text = "".join(chr(97 + i * i % 26) for i in range(900))
    with pytest.raises(InvalidArgumentError):
        client.generate(text, **options)
    for most, count in ((100, 100), (-1, CONTEXT - 16)):
        done = client.generate(text, truncate_prompt_tokens=most, **options)
        assert done.usage.prompt_tokens == count
        rest = [START, *bytes_of(text)[1 - count :]]
        assert done.token_ids == client.generate(rest, **options).token_ids
        ids = client.generate(bytes_of(text), truncate_prompt_tokens=most, **options)
        assert ids.usage.prompt_tokens == count


# The prefix cache


def test_prefixes_are_shared_where_salts_are_equal(client: Client) -> None:
    prompt = [70, 80, 90, 100] * 40

    def cached(salt: str) -> int:
        return client.generate(prompt, max_tokens=1, cache_salt=salt).usage.cached_tokens

    assert cached("one") == 0
    assert cached("one") > 100
    assert cached("two") == 0
    assert cached("") == 0
    assert cached("one") > 100
    assert cached("two") > 100
