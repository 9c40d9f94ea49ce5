"""Classification: conversion to and from protobuf messages, for both clients."""

from collections.abc import Iterable, Sequence
from typing import cast

from loramux import _wire
from loramux._classification_types import Classification, LabelScore, TextLabels, TokenLabels
from loramux._fitting import fitting
from loramux.errors import InvalidArgumentError
from loramux.v1 import classification_pb2

Text = str | Sequence[int]
"""A text, or its token ids."""
Classified = Text | Sequence[str]
"""The same, or a pair of texts."""

_PROBLEMS = {
    classification_pb2.PROBLEM_TYPE_SINGLE_LABEL: "single_label",
    classification_pb2.PROBLEM_TYPE_MULTI_LABEL: "multi_label",
    classification_pb2.PROBLEM_TYPE_REGRESSION: "regression",
}


def classify_request(
    texts: str | Sequence[Classified],
    adapter: str,
    top_k: int | None,
    logits: bool,
    request_id: str,
    routing_key: str,
    priority: int,
    parse_special_tokens: bool,
    add_special_tokens: bool,
) -> classification_pb2.ClassifyRequest:
    """Return the request.

    Raises:
        InvalidArgumentError: A value does not fit its field, or an input is neither a text nor a
            pair.
    """
    request = classification_pb2.ClassifyRequest(
        return_logits=logits, parse_special_tokens=parse_special_tokens
    )
    with fitting("adapter"):
        request.adapter = adapter
    with fitting("request_id"):
        request.request_id = request_id
    with fitting("routing_key"):
        request.routing_key = routing_key
    with fitting("priority"):
        request.priority = priority
    if top_k is not None:
        with fitting("top_k"):
            request.top_k = top_k
    if not add_special_tokens:
        request.add_special_tokens = False
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        if isinstance(text, str):
            with fitting(f"inputs[{index}].text"):
                request.inputs.add(text=text)
        elif any(isinstance(part, str) for part in text):
            request.inputs.append(_pair(text, f"inputs[{index}]"))
        else:
            with fitting(f"inputs[{index}].token_ids"):
                request.inputs.add(token_ids=cast(Sequence[int], text))
    return request


def classification(response: classification_pb2.ClassifyResponse) -> Classification:
    """Convert a response."""
    return Classification(
        request_id=response.request_id,
        adapter=_wire.identity(response.adapter),
        problem_type=_PROBLEMS.get(response.problem_type, "unknown"),
        labels=tuple(response.labels),
        results=tuple(map(_result, response.results)),
        usage=_wire.usage(response.usage),
        timing=_wire.timing(response.timing),
    )


def _pair(texts: Sequence[object], field: str) -> classification_pb2.ClassifyInput:
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise InvalidArgumentError(
            f"{field} is {texts!r:.200}; expected a text, a pair of texts or token ids",
            reason="INVALID_FIELD",
            field=field,
        )
    first, second = cast(Sequence[str], texts)
    with fitting(field):
        return classification_pb2.ClassifyInput(text=first, text_pair=second)


def _result(message: classification_pb2.Classification) -> TextLabels:
    return TextLabels(
        labels=_labels(message.labels),
        logits=tuple(message.logits),
        tokens=tuple(
            TokenLabels(
                token_id=token.token_id,
                begin=token.begin if token.HasField("begin") else None,
                end=token.end if token.HasField("end") else None,
                labels=_labels(token.labels),
                logits=tuple(token.logits),
            )
            for token in message.tokens
        ),
    )


def _labels(messages: Iterable[classification_pb2.LabelScore]) -> tuple[LabelScore, ...]:
    return tuple(LabelScore(each.index, each.label, each.score) for each in messages)
