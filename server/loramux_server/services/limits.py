"""Validation of a generation request's fields, before anything is allocated for it."""

import math
from collections.abc import Iterable, Sequence

from loramux.v1 import generation_pb2
from loramux_adapters.generation import MAX_STOP_BYTES, MAX_STOP_TOKENS, MAX_STOPS, NUMBERS
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.context_room import context_room
from loramux_server.services.generation.forms import check_form
from loramux_server.services.text_fields import (
    MAX_LONG_PROMPT_BYTES,
    check_readable,
    check_size,
    most_bytes,
    one_of,
)
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import MAX_LOGPROBS

MAX_REQUEST_ID = 128
MAX_BIASES = 300
MAX_BIAS = 100.0
MAX_ROUTING_KEY = 256
MAX_CACHE_SALT = 256
MAX_BAD_WORDS = 128
MAX_BAD_WORD_BYTES = 256


def check_fields(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    """Check that every field of `request` is within its limits.

    Which tokens exist depends on the adapter: see `check_own_tokens`.

    Raises:
        InvalidArgumentError: One is not; the message names it, its value and what would be right.
    """
    _check_prompt(request, model)
    check_names(request.request_id, request.routing_key)
    _check_lengths(request.sampling, model)
    _check_distribution(request.sampling, model)
    _check_stops(request.sampling, model)
    bad_words = request.sampling.bad_words
    _check_texts("sampling.bad_words", bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_BYTES, model)
    if (count := len(request.cache_salt)) > MAX_CACHE_SALT:
        # Its value is a secret where it keeps others from probing the cache.
        message = f"has {count} characters; expected at most {MAX_CACHE_SALT} characters"
        raise wrong("cache_salt", message)
    check_form(request.sampling, model)


def check_names(request_id: str, routing_key: str) -> None:
    """Check that a request's own id, and its routing key for aliases, are within limits.

    Raises:
        InvalidArgumentError: One is not.
    """
    if len(routing_key) > MAX_ROUTING_KEY:
        raise invalid("routing_key", routing_key, f"at most {MAX_ROUTING_KEY} characters")
    if len(request_id) > MAX_REQUEST_ID or not request_id.isprintable():
        raise invalid("request_id", request_id, f"at most {MAX_REQUEST_ID} printable characters")


def check_own_tokens(
    request: generation_pb2.GenerateRequest, prompt: Sequence[int], vocab_size: int
) -> None:
    """Check that every token id of a request exists in the model with its adapter.

    Args:
        request: The request.
        prompt: The tokens of its prompt.
        vocab_size: Number of token ids.

    Raises:
        InvalidArgumentError: One does not; the message names the field and the token.
    """
    fields = ("prompt_token_ids", "messages")
    field = next((name for name in fields if getattr(request, name)), "prompt")
    check_tokens(field, prompt, vocab_size)
    check_tokens("sampling.logit_bias", request.sampling.logit_bias, vocab_size)
    check_tokens("sampling.stop_token_ids", request.sampling.stop_token_ids, vocab_size)


def check_tokens(field: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Check that each of `tokens` is below `vocab_size`.

    Raises:
        InvalidArgumentError: One is not; the message names `field` and the token.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise wrong(field, f"holds token {token}; expected ids from 0 to {vocab_size - 1}")


def _check_prompt(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    field = one_of({
        "prompt": request.prompt,
        "prompt_token_ids": request.prompt_token_ids,
        "messages": request.messages,
    })  # fmt: skip
    if field != "prompt_token_ids":
        check_readable(field, "set prompt_token_ids", model)
    check_size("prompt", request.prompt, most_bytes(model, MAX_LONG_PROMPT_BYTES))
    num_tokens = len(request.prompt_token_ids)
    if request.HasField("truncate_prompt_tokens"):
        num_tokens = min(num_tokens, max(0, request.truncate_prompt_tokens))
    # Before the tokens are looked at one by one: a message may hold millions.
    context_room("prompt_token_ids", num_tokens, request.sampling, model)


def _check_lengths(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    returns_prompt_logprobs = params.HasField("prompt_logprobs")
    _check_integer(params, "max_tokens", 0 if returns_prompt_logprobs else 1, model.output_length)
    _check_integer(params, "min_tokens", 0, model.output_length)
    if params.HasField("max_tokens") and params.min_tokens > params.max_tokens:
        raise invalid(
            "sampling.min_tokens", params.min_tokens, f"at most max_tokens, {params.max_tokens}"
        )
    for name in ("logprobs", "prompt_logprobs"):
        _check_integer(params, name, 0, min(MAX_LOGPROBS, model.vocab_size))


def _check_distribution(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    _check_integer(params, "top_k", -1, model.vocab_size)
    for name, (low, high) in NUMBERS.items():
        _check_number(params, name, low, high, above=name == "top_p")
    if len(params.logit_bias) > MAX_BIASES:
        count = len(params.logit_bias)
        raise wrong("sampling.logit_bias", f"has {count} entries; expected at most {MAX_BIASES}")
    for token, bias in params.logit_bias.items():
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise invalid(
                f"sampling.logit_bias[{token}]", bias, f"a number from -{MAX_BIAS} to {MAX_BIAS}"
            )


def _check_stops(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    _check_texts("sampling.stop", params.stop, MAX_STOPS, MAX_STOP_BYTES, model)
    if len(params.stop_token_ids) > MAX_STOP_TOKENS:
        count, field = len(params.stop_token_ids), "sampling.stop_token_ids"
        raise wrong(field, f"has {count} tokens; expected at most {MAX_STOP_TOKENS}")


def _check_texts(
    field: str, texts: Sequence[str], max_texts: int, max_bytes: int, model: ModelInfo
) -> None:
    """Check texts that are compared with the output, which takes a tokenizer."""
    if len(texts) > max_texts:
        raise wrong(field, f"has {len(texts)} strings; expected at most {max_texts}")
    for text in texts:
        if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= max_bytes:
            raise invalid(field, text, f"strings of 1 to {max_bytes} bytes")
    if texts and model.tokenizer_json is None:
        raise invalid(field, texts[0], "none: the base model has no tokenizer")


def _check_integer(params: generation_pb2.SamplingParams, name: str, low: int, high: int) -> None:
    value = getattr(params, name)
    if params.HasField(name) and not low <= value <= high:  # type: ignore[arg-type]
        raise invalid(f"sampling.{name}", value, f"an integer from {low} to {high}")


def _check_number(
    params: generation_pb2.SamplingParams,
    name: str,
    low: float,
    high: float,
    *,
    above: bool = False,
) -> None:
    value = getattr(params, name)
    if not params.HasField(name):  # type: ignore[arg-type]
        return
    is_high_enough = value > low if above else value >= low
    # Written so that NaN fails.
    if not (is_high_enough and value <= high and math.isfinite(value)):
        begin = "above" if above else "from"
        raise invalid(f"sampling.{name}", value, f"a number {begin} {low:g} to {high:g}")
