"""Whether texts may be classified: every field within its limits."""

from collections.abc import Sequence

from loramux.errors import InvalidArgumentError
from loramux.v1 import classification_pb2
from loramux_adapters.head import Task
from loramux_server.engine.messages import ModelInfo
from loramux_server.services.limits import (
    MAX_PROMPT_BYTES,
    check_names,
    invalid,
    too_long,
)
from loramux_server.services.scoring import Scoring
from loramux_server.store.reference import parse_reference

MAX_INPUTS = 64
MAX_NUMBERS = 1 << 20
"""Labels times tokens of a request whose tokens are labelled."""


def check_request(request: classification_pb2.ClassifyRequest, model: ModelInfo) -> None:
    """Demand that every field of `request` is within limits that no adapter changes.

    Raises:
        InvalidArgumentError: One is not; the message names it, its value and what would be right.
    """
    if not request.adapter:
        raise invalid("adapter", "", "a reference: the base model has no head to classify with")
    parse_reference(request.adapter, "adapter")
    check_names(request.request_id, request.routing_key)
    if not 1 <= len(request.inputs) <= MAX_INPUTS:
        raise invalid("inputs", f"{len(request.inputs)} entries", f"1 to {MAX_INPUTS}")
    size = 0
    for index, each in enumerate(request.inputs):
        _check_input(f"inputs[{index}]", each, model)
        size += len(each.text.encode("utf-8", "surrogatepass"))
    if size > MAX_PROMPT_BYTES:
        raise invalid("inputs", f"{size} bytes of text", f"at most {MAX_PROMPT_BYTES}")


def check_sizes(lengths: Sequence[int], scoring: Scoring, model: ModelInfo) -> None:
    """Demand that texts of so many tokens fit the context, and what is told of them a message.

    Raises:
        InvalidArgumentError: They do not.
    """
    for index, length in enumerate(lengths):
        if length > model.context_length:
            raise too_long(f"inputs[{index}]", length, model)
    num_labels = len(scoring.labels.names)
    if scoring.task is Task.TOKENS and sum(lengths) * num_labels > MAX_NUMBERS:
        raise invalid(
            "inputs",
            f"{sum(lengths)} tokens, each with {num_labels} labels",
            f"at most {MAX_NUMBERS // num_labels} tokens in one request",
        )


def _check_input(field: str, each: classification_pb2.ClassifyInput, model: ModelInfo) -> None:
    if bool(each.text) == bool(each.token_ids):
        both = f"{field}.text and {field}.token_ids are both"
        fault = f"{both} set" if each.text else f"{both} empty"
        raise InvalidArgumentError(
            f"{fault}; set one of them", reason="INVALID_FIELD", field=f"{field}.text"
        )
    if each.text and model.tokenizer_json is None:
        raise InvalidArgumentError(
            f"{field}.text is text, but the base model came without a tokenizer; set token_ids",
            reason="INVALID_FIELD",
            field=f"{field}.text",
        )
    if len(each.token_ids) > model.context_length:
        raise too_long(f"{field}.token_ids", len(each.token_ids), model)
