"""Generation: conversion to and from protobuf messages, and from gRPC status to error."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Unpack

import grpc

from loramux import errors
from loramux._fitting import fitting
from loramux._sampling_wire import add_sampling, sampling_options
from loramux._tool_wire import OPTIONS as TOOL_OPTIONS
from loramux._tool_wire import add_messages, add_tools, tool_calls
from loramux.types import (
    AdapterIdentity,
    Chunk,
    Completion,
    FinishReason,
    Generation,
    Message,
    Mix,
    PositionLogprobs,
    PromptOptions,
    RequestOptions,
    Timing,
    TokenLogprob,
    Usage,
)
from loramux.v1 import errors_pb2, generation_pb2

ERROR_KEY = "loramux-error-bin"
"""Trailing metadata with an ErrorDetail."""

_HUNG_UP = (grpc.StatusCode.CANCELLED, "CANCELLED")
"""Status that gRPC gives calls which reach a server while it shuts down."""

_FINISH: dict[int, FinishReason] = {
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
}
_BESIDE_SAMPLING = TOOL_OPTIONS | PromptOptions.__optional_keys__ | {"prediction", "decoder_prompt"}
_ERRORS = {
    error.code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.LoramuxError)
}


def generate_request(
    prompt: str | Sequence[int] | None,
    messages: Sequence[Message] | None,
    adapter: str | None,
    **options: Unpack[RequestOptions],
) -> generation_pb2.GenerateRequest:
    """Return the request.

    Raises:
        InvalidArgumentError: A value does not fit its field.
    """
    request = generation_pb2.GenerateRequest(
        parse_special_tokens=options.get("parse_special_tokens", False)
    )
    _add_adapters(request, adapter, options)
    with fitting("request_id"):
        request.request_id = options.get("request_id", "")
    with fitting("priority"):
        request.priority = options.get("priority", 0)
    with fitting("cache_salt"):
        request.cache_salt = options.get("cache_salt", "")
    if (most := options.get("truncate_prompt_tokens")) is not None:
        with fitting("truncate_prompt_tokens"):
            request.truncate_prompt_tokens = most
    _add_tokens(request, "prompt", prompt)
    _add_tokens(request, "prediction", options.get("prediction"))
    _add_tokens(request, "decoder_prompt", options.get("decoder_prompt"))
    add_messages(messages or (), request)
    if not options.get("add_special_tokens", True):
        request.add_special_tokens = False
    if not options.get("add_generation_prompt", True):
        request.add_generation_prompt = False
    add_tools(options, request)
    sampling = {name: value for name, value in options.items() if name not in _BESIDE_SAMPLING}
    add_sampling(sampling, request.sampling)
    return request


def _add_adapters(
    request: generation_pb2.GenerateRequest, adapter: str | None, options: RequestOptions
) -> None:
    """Add the adapter or the mix, with weights and scale, to `request`."""
    with fitting("adapter"):
        request.adapter = adapter or ""
    with fitting("routing_key"):
        request.routing_key = options.get("routing_key", "")
    for name, weight in _pairs(options.get("adapters", ())):
        with fitting("adapters"):
            request.adapters.add(adapter=name, weight=weight)
    combination, scale = options.get("combination"), options.get("scale")
    if combination is not None:
        with fitting("combination"):
            request.combination = _combination(combination)
    if scale is not None:
        with fitting("scale"):
            request.scale = scale


def _combination(name: str) -> generation_pb2.Combination.ValueType:
    known = {
        value.removeprefix("COMBINATION_").lower(): number
        for value, number in generation_pb2.Combination.items()
        if number != generation_pb2.COMBINATION_UNSPECIFIED
    }
    if name.lower() not in known:
        raise ValueError(f"expected {' or '.join(known)}, got {name!r}")
    return known[name.lower()]


def _add_tokens(
    request: generation_pb2.GenerateRequest, field: str, given: str | Sequence[int] | None
) -> None:
    """Add text or token ids to the respective field of `request`."""
    if isinstance(given, str):
        with fitting(field):
            setattr(request, field, given)
    elif given is not None:
        field += "_token_ids"
        with fitting(field):
            getattr(request, field).extend(given)


def _pairs(adapters: Mix) -> Iterable[tuple[str, float]]:
    return adapters.items() if isinstance(adapters, Mapping) else adapters


def generation(response: generation_pb2.GenerateResponse) -> Generation:
    """Convert a complete response."""
    return Generation(
        request_id=response.request_id,
        completions=tuple(_completion(completion) for completion in response.completions),
        adapter=identity(response.adapter) if response.HasField("adapter") else None,
        adapters=tuple(map(identity, response.adapters)),
        usage=usage(response.usage),
        timing=timing(response.timing),
        sampling=sampling_options(response.sampling),
        prompt_logprobs=_prompt_logprobs(response.prompt_logprobs),
    )


def chunk(response: generation_pb2.StreamGenerateResponse) -> Chunk:
    """Convert one message of a stream."""
    delta = response.delta
    return Chunk(
        index=delta.index,
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        logprobs=_logprobs(delta.logprobs),
        tool_calls=tool_calls(delta.tool_calls),
        reasoning=delta.reasoning,
        finish_reason=_finish(delta.finish_reason) if delta.finish_reason else None,
        stop_string=delta.stop_string if delta.HasField("stop_string") else None,
        stop_token_id=delta.stop_token_id if delta.HasField("stop_token_id") else None,
        request_id=response.request_id,
        adapter=identity(response.adapter) if response.HasField("adapter") else None,
        adapters=tuple(map(identity, response.adapters)),
        usage=usage(response.usage) if response.HasField("usage") else None,
        timing=timing(response.timing) if response.HasField("timing") else None,
        sampling=sampling_options(response.sampling) if response.HasField("sampling") else None,
        prompt_logprobs=_prompt_logprobs(response.prompt_logprobs),
        prompt_tokens=response.prompt_tokens,
        beam_score=delta.beam_score if delta.HasField("beam_score") else None,
    )


@contextmanager
def raising() -> Iterator[None]:
    """Raise the server's error in place of gRPC's."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from None


def error_of(error: grpc.RpcError) -> errors.LoramuxError:
    """Return the server's error for an error that gRPC raised."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    kind = _ERRORS.get(error.code(), errors.InternalError)
    if (error.code(), error.details()) == _HUNG_UP:
        kind = errors.UnavailableError
    if kind is errors.LoramuxError:
        kind = errors.InternalError
    detail = _detail(error.trailing_metadata())
    retry_delay = None
    if detail.HasField("retry_delay"):
        retry_delay = detail.retry_delay.ToTimedelta().total_seconds()
    reason = ""
    if detail.reason:
        reason = _reason(detail.reason)
    return kind(
        error.details() or error.code().name,
        reason=reason,
        field=detail.field,
        retry_delay=retry_delay,
        quota=detail.quota,
    )


def _detail(
    metadata: Iterable[tuple[str, str | bytes]] | Mapping[str, str | bytes] | None,
) -> errors_pb2.ErrorDetail:
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata or ()
    for key, value in pairs:
        if key == ERROR_KEY and isinstance(value, bytes):
            return errors_pb2.ErrorDetail.FromString(value)
    return errors_pb2.ErrorDetail()


def _completion(message: generation_pb2.Completion) -> Completion:
    return Completion(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=_finish(message.finish_reason),
        stop_string=message.stop_string if message.HasField("stop_string") else None,
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        logprobs=_logprobs(message.logprobs),
        tool_calls=tool_calls(message.tool_calls),
        reasoning=message.reasoning,
        beam_score=message.beam_score if message.HasField("beam_score") else None,
    )


def _finish(reason: int) -> FinishReason:
    return _FINISH.get(reason, FinishReason.UNKNOWN)


def _reason(number: int) -> str:
    known = errors_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("ERROR_REASON_") if known else str(number)


def _logprobs(
    positions: Iterable[generation_pb2.PositionLogprobs],
) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_token_logprob(position.chosen), tuple(map(_token_logprob, position.top)))
        for position in positions
    )


def _prompt_logprobs(
    positions: Sequence[generation_pb2.PositionLogprobs],
) -> tuple[PositionLogprobs, ...]:
    if not positions:
        return ()
    first, *others = positions
    chosen = TokenLogprob(first.chosen.token_id, math.nan, first.chosen.utf8)
    return PositionLogprobs(chosen, ()), *(
        PositionLogprobs(
            _token_logprob(position.chosen), tuple(map(_token_logprob, position.top)), position.rank
        )
        for position in others
    )


def _token_logprob(token: generation_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token_id, token.logprob, token.utf8)


def identity(message: generation_pb2.AdapterIdentity) -> AdapterIdentity:
    """Convert the identity of an adapter."""
    return AdapterIdentity(message.name, message.digest, message.tenant, message.version)


def usage(message: generation_pb2.Usage) -> Usage:
    """Convert token counts."""
    return Usage(
        message.prompt_tokens,
        message.completion_tokens,
        message.cached_tokens,
        message.reasoning_tokens,
    )


def timing(message: generation_pb2.Timing) -> Timing:
    """Convert timings."""
    return Timing(message.queue_seconds, message.time_to_first_token_seconds, message.total_seconds)
