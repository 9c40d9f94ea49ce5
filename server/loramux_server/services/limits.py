"""Whether a request may run: every field within its limits, before anything is done for it."""

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_adapters.generation import MAX_STOP_BYTES, MAX_STOP_TOKENS, MAX_STOPS, NUMBERS
from loramux_server.engine.model_info import ModelInfo
from loramux_server.engine.sampling import MAX_LOGPROBS, Sampling
from loramux_server.forms.form import Form
from loramux_server.services.forms import check_form

MAX_PROMPT_BYTES = 256 << 10
MAX_REQUEST_ID = 128
MAX_COMPLETIONS = 8
MAX_BIASES = 300
MAX_BIAS = 100.0
DEFAULT_MAX_TOKENS = 256
MAX_ROUTING_KEY = 256
MAX_PAGE = 1000
DEFAULT_PAGE = 100

_SEEDS = 1 << 64


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What happens to the text of a completion."""

    stops: tuple[str, ...]
    include_stop: bool
    skip_special: bool


def check_fields(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    """Demand that every field of `request` is within its limits.

    Which tokens there are depends on the adapter: see `check_own_tokens`.

    Raises:
        InvalidArgumentError: One is not; the message names it, its value and what would be right.
    """
    _check_prompt(request, model)
    check_names(request.request_id, request.routing_key)
    _check_lengths(request.sampling, model)
    _check_shaping(request.sampling, model)
    _check_stops(request.sampling, model)
    check_form(request.sampling, model)


def check_names(request_id: str, routing_key: str) -> None:
    """Demand that what a caller names a request, and the key of an alias, are within limits.

    Raises:
        InvalidArgumentError: One is not.
    """
    if len(routing_key) > MAX_ROUTING_KEY:
        raise invalid("routing_key", routing_key, f"at most {MAX_ROUTING_KEY} characters")
    if len(request_id) > MAX_REQUEST_ID or not request_id.isprintable():
        raise invalid("request_id", request_id, f"at most {MAX_REQUEST_ID} printable characters")


def samplings(
    params: generation_pb2.SamplingParams,
    num_prompt: int,
    model: ModelInfo,
    defaults: Mapping[str, object] = MappingProxyType({}),
    *,
    num_virtual: int = 0,
    form: Form | None = None,
) -> list[Sampling]:
    """Return how each of the n completions of a prompt of `num_prompt` tokens is chosen.

    Args:
        params: What was asked for.
        num_prompt: Tokens of the prompt.
        model: The base model.
        defaults: Where `params` name no `max_tokens`, that of these counts.
        num_virtual: Tokens that the adapter puts before the prompt.
        form: What each has to be; None for anything.

    Raises:
        InvalidArgumentError: Prompt and completion do not fit the context.
    """
    room = model.context_length - num_prompt - num_virtual
    if room < (0 if _is_empty(params) else 1):
        raise _no_room("prompt", num_prompt, params, model, num_virtual)
    if params.HasField("max_tokens") and params.max_tokens > room:
        raise InvalidArgumentError(
            f"sampling.max_tokens is {params.max_tokens}; after a prompt of {num_prompt} tokens"
            f"{_with_virtual(num_virtual)} the context of {model.context_length} leaves room for "
            f"{room}",
            reason="CONTEXT_LENGTH_EXCEEDED",
            field="sampling.max_tokens",
        )
    max_tokens = cast(int, defaults.get("max_tokens", DEFAULT_MAX_TOKENS))
    if params.HasField("max_tokens"):
        max_tokens = params.max_tokens
    seed = params.seed if params.HasField("seed") else secrets.randbits(63)
    return [
        Sampling(
            max_tokens=min(max_tokens, room),
            min_tokens=min(params.min_tokens, room),
            # Seeds are signed 64-bit numbers; the one after the last is the first.
            seed=(seed + index + _SEEDS // 2) % _SEEDS - _SEEDS // 2,
            temperature=params.temperature if params.HasField("temperature") else 1.0,
            top_k=max(0, params.top_k),
            top_p=params.top_p if params.HasField("top_p") else 1.0,
            min_p=params.min_p,
            repetition_penalty=(
                params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
            ),
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=dict(params.logit_bias),
            stop_token_ids=frozenset(params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            num_logprobs=params.logprobs if params.HasField("logprobs") else None,
            # All completions have the prompt in common.
            num_prompt_logprobs=(
                params.prompt_logprobs
                if params.HasField("prompt_logprobs") and index == 0
                else None
            ),
            form=form,
        )
        for index in range(params.n if params.HasField("n") else 1)
    ]


def text_options(params: generation_pb2.SamplingParams) -> TextOptions:
    """Return what happens to the text."""
    return TextOptions(
        stops=tuple(params.stop),
        include_stop=params.include_stop,
        skip_special=params.skip_special_tokens if params.HasField("skip_special_tokens") else True,
    )


def page_size(asked: int) -> int:
    """Return how many entries a page has that was asked for with the field `page_size`.

    Raises:
        InvalidArgumentError: It is negative.
    """
    if asked < 0:
        raise invalid("page_size", asked, f"0 to {MAX_PAGE}")
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def check_own_tokens(
    request: generation_pb2.GenerateRequest, prompt: Sequence[int], vocab_size: int
) -> None:
    """Demand that the model has each token of a request with the adapter that it names.

    Args:
        request: The request.
        prompt: The tokens of its prompt.
        vocab_size: How many tokens there are.

    Raises:
        InvalidArgumentError: It lacks one; the message names the field and the token.
    """
    fields = ("prompt_token_ids", "messages")
    field = next((name for name in fields if getattr(request, name)), "prompt")
    check_tokens(field, prompt, vocab_size)
    check_tokens("sampling.logit_bias", request.sampling.logit_bias, vocab_size)
    check_tokens("sampling.stop_token_ids", request.sampling.stop_token_ids, vocab_size)


def check_tokens(field: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Demand that the model has each of `tokens`.

    Raises:
        InvalidArgumentError: It lacks one; the message names `field` and the token.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise InvalidArgumentError(
                f"{field} holds token {token}; expected ids from 0 to {vocab_size - 1}",
                reason="INVALID_FIELD",
                field=field,
            )


def invalid(field: str, value: object, expected: str) -> InvalidArgumentError:
    """Return the error for a field that is out of its limits."""
    return InvalidArgumentError(
        f"{field} is {shown(value)}; expected {expected}", reason="INVALID_FIELD", field=field
    )


def _check_prompt(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    given = {
        "prompt": request.prompt,
        "prompt_token_ids": request.prompt_token_ids,
        "messages": request.messages,
    }
    fields = [name for name, value in given.items() if value]
    if len(fields) != 1:
        raise InvalidArgumentError(
            f"{' and '.join(fields)} are both set; set one of them"
            if fields
            else "prompt, prompt_token_ids and messages are all empty; set one of them",
            reason="INVALID_FIELD",
            field=fields[0] if fields else "prompt",
        )
    if fields[0] != "prompt_token_ids" and model.tokenizer_json is None:
        raise InvalidArgumentError(
            f"{fields[0]} is text, but the base model came without a tokenizer; "
            "set prompt_token_ids",
            reason="INVALID_FIELD",
            field=fields[0],
        )
    size = len(request.prompt.encode("utf-8", "surrogatepass"))
    if size > MAX_PROMPT_BYTES:
        raise InvalidArgumentError(
            f"prompt has {size} bytes; at most {MAX_PROMPT_BYTES}",
            reason="INVALID_FIELD",
            field="prompt",
        )
    # Before they are looked at one by one: a message may hold millions.
    room = model.context_length - len(request.prompt_token_ids)
    if room < (0 if _is_empty(request.sampling) else 1):
        raise _no_room("prompt_token_ids", len(request.prompt_token_ids), request.sampling, model)


def _is_empty(params: generation_pb2.SamplingParams) -> bool:
    """Return whether no token is to be made."""
    return params.HasField("max_tokens") and params.max_tokens == 0


def _no_room(
    field: str,
    num_prompt: int,
    params: generation_pb2.SamplingParams,
    model: ModelInfo,
    num_virtual: int = 0,
) -> InvalidArgumentError:
    rest = "is smaller" if _is_empty(params) else "leaves no room for a completion"
    return InvalidArgumentError(
        f"{field} has {num_prompt} tokens{_with_virtual(num_virtual)}; the context of "
        f"{model.context_length} {rest}",
        reason="CONTEXT_LENGTH_EXCEEDED",
        field=field,
    )


def _with_virtual(num_virtual: int) -> str:
    return f" and {num_virtual} virtual tokens of the adapter" if num_virtual else ""


def _check_lengths(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    tells_prompt = params.HasField("prompt_logprobs")
    _check_integer(params, "max_tokens", 0 if tells_prompt else 1, model.context_length)
    _check_integer(params, "min_tokens", 0, model.context_length)
    if params.HasField("max_tokens") and params.min_tokens > params.max_tokens:
        raise invalid(
            "sampling.min_tokens", params.min_tokens, f"at most max_tokens, {params.max_tokens}"
        )
    _check_integer(params, "n", 1, 1 if _is_empty(params) else MAX_COMPLETIONS)
    for name in ("logprobs", "prompt_logprobs"):
        _check_integer(params, name, 0, min(MAX_LOGPROBS, model.vocab_size))


def _check_shaping(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    _check_integer(params, "top_k", -1, model.vocab_size)
    for name, (low, high) in NUMBERS.items():
        _check_number(params, name, low, high, above=name == "top_p")
    if len(params.logit_bias) > MAX_BIASES:
        raise invalid(
            "sampling.logit_bias", f"{len(params.logit_bias)} entries", f"at most {MAX_BIASES}"
        )
    for token, bias in params.logit_bias.items():
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise invalid(
                f"sampling.logit_bias[{token}]", bias, f"a number from -{MAX_BIAS} to {MAX_BIAS}"
            )


def _check_stops(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    if len(params.stop) > MAX_STOPS:
        raise invalid("sampling.stop", f"{len(params.stop)} strings", f"at most {MAX_STOPS}")
    for stop in params.stop:
        if not 1 <= len(stop.encode("utf-8", "surrogatepass")) <= MAX_STOP_BYTES:
            raise invalid("sampling.stop", stop, f"strings of 1 to {MAX_STOP_BYTES} bytes")
    if params.stop and model.tokenizer_json is None:
        raise invalid("sampling.stop", params.stop[0], "none: the base model has no tokenizer")
    if len(params.stop_token_ids) > MAX_STOP_TOKENS:
        raise invalid(
            "sampling.stop_token_ids",
            f"{len(params.stop_token_ids)} tokens",
            f"at most {MAX_STOP_TOKENS}",
        )


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
