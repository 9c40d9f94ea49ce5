"""Embedding: conversion to and from protobuf messages, for both clients."""

from collections.abc import Sequence

from loramux import _wire
from loramux._classification_wire import Text
from loramux._embedding_types import Embedding
from loramux._fitting import fitting
from loramux.errors import InvalidArgumentError
from loramux.v1 import embedding_pb2

POOLINGS = {
    "last": embedding_pb2.POOLING_LAST,
    "mean": embedding_pb2.POOLING_MEAN,
    "first": embedding_pb2.POOLING_FIRST,
}
_NAMES = {value: name for name, value in POOLINGS.items()}


def embed_request(
    texts: str | Sequence[Text],
    adapter: str | None,
    pooling: str | None,
    normalize: bool | None,
    dimensions: int | None,
    request_id: str,
    routing_key: str,
    priority: int,
    parse_special_tokens: bool,
    add_special_tokens: bool,
) -> embedding_pb2.EmbedRequest:
    """Return the request.

    Raises:
        InvalidArgumentError: A value does not fit its field.
    """
    request = embedding_pb2.EmbedRequest(
        parse_special_tokens=parse_special_tokens, add_special_tokens=add_special_tokens
    )
    if adapter is not None:
        with fitting("adapter"):
            request.adapter = adapter
    if pooling is not None:
        if pooling not in POOLINGS:
            raise InvalidArgumentError(
                f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}",
                reason="INVALID_FIELD",
                field="pooling",
            )
        request.pooling = POOLINGS[pooling]
    if normalize is not None:
        request.normalize = normalize
    if dimensions is not None:
        with fitting("dimensions"):
            request.dimensions = dimensions
    with fitting("request_id"):
        request.request_id = request_id
    with fitting("routing_key"):
        request.routing_key = routing_key
    with fitting("priority"):
        request.priority = priority
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        if isinstance(text, str):
            with fitting(f"inputs[{index}].text"):
                request.inputs.add(text=text)
        else:
            with fitting(f"inputs[{index}].token_ids"):
                request.inputs.add(token_ids=text)
    return request


def embedding(response: embedding_pb2.EmbedResponse) -> Embedding:
    """Convert a response."""
    return Embedding(
        request_id=response.request_id,
        adapter=_wire.identity(response.adapter) if response.HasField("adapter") else None,
        vectors=tuple(tuple(each.values) for each in response.embeddings),
        pooling=_NAMES.get(response.pooling, "unknown"),
        is_normalized=response.is_normalized,
        usage=_wire.usage(response.usage),
        timing=_wire.timing(response.timing),
    )
