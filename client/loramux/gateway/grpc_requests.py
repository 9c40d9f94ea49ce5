"""Request bodies as messages to the server, one for each prompt."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from loramux import _wire
from loramux.errors import NotFoundError
from loramux.gateway.body import Body, ChatBody, CompletionBody, ObjectFormat, SchemaFormat
from loramux.gateway.effort import effort_variables
from loramux.gateway.messages import message_of, text_of
from loramux.gateway.refusal import invalid, unsupported
from loramux.types import Message
from loramux.v1 import generation_pb2

MAX_PROMPTS = 64
MAX_PROMPT_LOGPROBS = 1 << 20
"""Log-probabilities of prompts in one answer, at most; this many are some 64 MiB of JSON."""
SERVER_MAX_PROMPT_LOGPROBS = 1 << 18
"""The server's own limit for one prompt, assumed where images make a prompt's length unknown."""
MAX_SECONDS = 86_400
"""Limit of a request's timeout: gRPC ends calls with much longer ones at once."""

_AS_THEY_ARE = (
    "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "logit_bias", "min_tokens",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "stop_token_ids", "ignore_eos",
    "skip_special_tokens", "decoder_prompt", "priority", "cache_salt", "bad_words",
    "truncate_prompt_tokens",
)  # fmt: skip
"""Fields of a body that have the same name in the server's request."""


def chat_requests(body: ChatBody, base: str) -> list[generation_pb2.GenerateRequest]:
    """Return `body` as requests to a server whose base model is called `base`.

    Raises:
        LoramuxError: A field is invalid or unsupported; the error names it.
    """
    if not body.messages:
        raise invalid("messages", "messages is an empty list; give at least one message")
    messages = [message_of(index, message) for index, message in enumerate(body.messages)]
    return chat_requests_with(body, messages, base)


def chat_requests_with(
    body: ChatBody, messages: Sequence[Message], base: str
) -> list[generation_pb2.GenerateRequest]:
    """Return `body` as requests, with `messages` instead of its own; see `chat_requests`."""
    shared = _shared(body, base) | _tools(body)
    shared["add_generation_prompt"] = body.add_generation_prompt
    shared |= _of_prompt(body, None)
    return _checked(body, [_request(None, messages, routing_key=body.user, **shared)])


def completion_requests(
    body: CompletionBody, base: str, request_id: str
) -> list[generation_pb2.GenerateRequest]:
    """Return `body`, of the request `request_id`, as requests to the server: one for each prompt.

    See `chat_requests`.
    """
    num_completions = 1 if body.n is None else body.n
    if body.best_of not in (None, num_completions) and not body.use_beam_search:
        raise unsupported(
            "best_of",
            f"best_of is {body.best_of}; expected n, {num_completions}, without use_beam_search",
        )
    prompts = _prompts(body.prompt)
    # One key for all prompts, so that an alias that splits traffic picks the same version for all.
    key = body.user or (request_id if len(prompts) > 1 else "")
    shared = _shared(body, base)
    shared["add_special_tokens"] = body.add_special_tokens
    shared["parse_special_tokens"] = body.parse_special_tokens
    requests = [
        _request(prompt, None, routing_key=key, **shared | _of_prompt(body, prompt))
        for prompt in prompts
    ]
    return _checked(body, requests)


def _of_prompt(body: Body, prompt: str | list[int] | None) -> dict[str, Any]:
    """Return the options about the prompt itself; None stands for messages."""
    wanted = body.of_prompts.wanted(prompt, makes_tokens=body.most_tokens != 0)
    return {} if wanted is None else {"prompt_logprobs": wanted}


def _checked(
    body: Body, requests: list[generation_pb2.GenerateRequest]
) -> list[generation_pb2.GenerateRequest]:
    """Return `requests` if their prompts' log-probabilities stay within MAX_PROMPT_LOGPROBS.

    Raises:
        LoramuxError: They may exceed it, counting a token for each byte of text.
    """
    num_logprobs = 0
    for request in requests:
        if request.sampling.HasField("prompt_logprobs"):
            most = len(request.prompt_token_ids) or sum(map(_size, _texts(request)))
            num_logprobs += most * (1 + request.sampling.prompt_logprobs)
            if any(part.HasField("image") for each in request.messages for part in each.parts):
                num_logprobs += SERVER_MAX_PROMPT_LOGPROBS
    num_logprobs *= 1 if body.n is None else body.n
    if num_logprobs > MAX_PROMPT_LOGPROBS:
        field = "logprobs" if body.of_prompts.num_prompt_logprobs is None else "prompt_logprobs"
        raise invalid(
            field,
            f"{field} may return {num_logprobs} log-probabilities of prompts over all choices; "
            f"expected at most {MAX_PROMPT_LOGPROBS}: send fewer prompts at once, or request fewer "
            "of each token",
        )
    return requests


def _request(
    prompt: str | list[int] | None,
    messages: Sequence[Message] | None,
    **options: Any,  # noqa: ANN401 - of `_shared`, which has checked them
) -> generation_pb2.GenerateRequest:
    return _wire.generate_request(prompt, messages, options.pop("adapter", None), **options)


def check_timeout(seconds: float | None) -> None:
    """Check a request's `timeout` field.

    Raises:
        LoramuxError: It is not above 0 and at most MAX_SECONDS.
    """
    # Written so that NaN fails.
    if seconds is not None and not 0 < seconds <= MAX_SECONDS:
        raise invalid(
            "timeout", f"timeout is {seconds}; expected seconds above 0 and at most {MAX_SECONDS}"
        )


def _shared(body: Body, base: str) -> dict[str, Any]:
    """Return the options shared by all prompts of `body`. Missing fields are left to the server."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is set; it needs stream to be true")
    check_timeout(body.timeout)
    given = {name: getattr(body, name) for name in _AS_THEY_ARE}
    given |= {
        "max_tokens": body.most_tokens,
        "logprobs": body.num_logprobs,
        "include_stop": body.include_stop_str_in_output,
    }
    if body.prediction:
        given["prediction"] = text_of("prediction.content", body.prediction.content)
    options = {name: value for name, value in given.items() if value is not None}
    return options | _beams(body) | _form(body) | _adapters(body, base)


def _beams(body: Body) -> dict[str, Any]:
    """Return the beam search options: `num_beams` beams, of which the best `n` are returned."""
    if not body.use_beam_search:
        if body.length_penalty is not None:
            raise invalid("length_penalty", "length_penalty is set; it needs use_beam_search")
        return {}
    if body.num_beams == 1:
        raise invalid(
            "use_beam_search",
            "use_beam_search is true with 1 beam; set n or best_of to 2 or more",
        )
    found = {"num_beams": body.num_beams, "length_penalty": body.length_penalty}
    return {name: value for name, value in found.items() if value is not None}


def _form(body: Body) -> dict[str, Any]:
    """Return the structured output option, if there is one."""
    found: list[tuple[str, Any]] = []
    if isinstance(body.response_format, ObjectFormat):
        found.append(("json_object", True))
    elif isinstance(body.response_format, SchemaFormat):
        found.append(("json_schema", body.response_format.json_schema.schema))
    if body.structured_outputs:
        given = msgspec.structs.asdict(body.structured_outputs)
        found += [
            ("json_schema" if name == "json" else name, value)
            for name, value in given.items()
            if value is not None and value is not False
        ]
    if len(found) > 1:
        raise invalid(
            "structured_outputs",
            "more than one of response_format and the fields of structured_outputs is set; set one",
        )
    return dict(found)


def _adapters(body: Body, base: str) -> dict[str, Any]:
    if body.adapters is None:
        if body.combination is not None:
            raise invalid("combination", "combination is set; it needs adapters")
        adapter = adapter_of(body.model, base)
        return {} if adapter is None else {"adapter": adapter}
    if body.model != base:
        raise invalid(
            "model",
            f"model is {body.model!r}; with adapters, it must be the base model, {base!r}",
        )
    if not body.adapters:
        raise invalid("adapters", "adapters is an empty list; give at least one, or leave it out")
    if len(body.adapters) == 1 and body.combination is None:
        return {"adapter": body.adapters[0].name, "scale": body.adapters[0].scale}
    mix = [(each.name, each.scale) for each in body.adapters]
    return {"adapters": mix, "combination": body.combination}


def adapter_of(model: str, base: str) -> str | None:
    """Return the adapter that `model` names; None for the base model, which is called `base`.

    Raises:
        NotFoundError: It is empty; the server would answer with the base model.
    """
    if not model:
        raise NotFoundError(
            f"model is empty; the base model is called {base!r}",
            reason="ADAPTER_NOT_FOUND",
            field="model",
        )
    return None if model == base else model


def _tools(body: ChatBody) -> dict[str, Any]:
    """Return the options that only chats have: tools and variables of the chat template."""
    choice = body.tool_choice
    if choice == "required" and not body.tools:
        raise invalid("tool_choice", "tool_choice is 'required'; it needs tools")
    variables = effort_variables("reasoning_effort", body.reasoning_effort)
    variables |= body.chat_template_kwargs or {}
    found = {
        "tools": [msgspec.to_builtins(tool) for tool in body.tools],
        "tool_choice": msgspec.to_builtins(choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "chat_template_kwargs": variables or None,
        "separate_reasoning": body.separate_reasoning,
    }
    return {name: value for name, value in found.items() if value not in (None, [])}


def _texts(request: generation_pb2.GenerateRequest) -> Iterator[str]:
    yield request.prompt
    for message in request.messages:
        yield message.content
        yield from (part.text for part in message.parts)


def _size(text: str) -> int:
    return len(text.encode())


def _prompts(given: object) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if _are_tokens(given):
            return [given]
        if len(given) > MAX_PROMPTS:
            raise invalid("prompt", f"prompt has {len(given)} entries; at most {MAX_PROMPTS}")
        if all(isinstance(each, str) or (each and _are_tokens(each)) for each in given):
            return given
    raise invalid(
        "prompt", "prompt must be text, token ids, or a list of either; lists must not be empty"
    )


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)
