"""Tokenization: conversion to and from protobuf messages, for both clients."""

from collections.abc import Sequence

from loramux._fitting import fitting
from loramux._token_types import Tokens
from loramux._wire import identity
from loramux.v1 import generation_pb2, tokenization_pb2


def tokenize_request(
    request: generation_pb2.GenerateRequest, pieces: bool
) -> tokenization_pb2.TokenizeRequest:
    """Return the request to tokenize the prompt of `request`."""
    return tokenization_pb2.TokenizeRequest(request=request, return_pieces=pieces)


def tokens(response: tokenization_pb2.TokenizeResponse) -> Tokens:
    """Convert a response."""
    return Tokens(
        ids=tuple(response.token_ids),
        pieces=tuple(response.pieces),
        context_length=response.context_length,
        adapter=identity(response.adapter) if response.HasField("adapter") else None,
    )


def detokenize_request(
    token_ids: Sequence[int], adapter: str | None, skip_special_tokens: bool
) -> tokenization_pb2.DetokenizeRequest:
    """Return the request to detokenize.

    Raises:
        InvalidArgumentError: A value does not fit its field.
    """
    request = tokenization_pb2.DetokenizeRequest(skip_special_tokens=skip_special_tokens)
    with fitting("adapter"):
        request.adapter = adapter or ""
    with fitting("token_ids"):
        request.token_ids.extend(token_ids)
    return request
