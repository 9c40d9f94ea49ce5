"""Validation of the inputs of classification and embedding requests."""

from collections.abc import Sequence
from typing import TypeGuard

from loramux.errors import InvalidArgumentError
from loramux.v1 import classification_pb2, embedding_pb2
from loramux_server.field_errors import wrong
from loramux_server.services.context_room import extras
from loramux_server.services.text_fields import MAX_PROMPT_BYTES, check_readable, num_bytes, one_of
from loramux_server.wire.model_info import ModelInfo

MAX_INPUTS = 64
Input = classification_pb2.ClassifyInput | embedding_pb2.EmbedInput


def check_inputs(inputs: Sequence[Input], model: ModelInfo) -> None:
    """Check the request field `inputs`.

    Raises:
        InvalidArgumentError: It is invalid; the message says what would be right.
    """
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise wrong("inputs", f"has {len(inputs)} entries; expected 1 to {MAX_INPUTS}")
    size = 0
    for index, each in enumerate(inputs):
        _check_input(f"inputs[{index}]", each, model)
        size += sum(num_bytes(text) for text in _texts(each))
    if size > MAX_PROMPT_BYTES:
        raise wrong("inputs", f"has {size} bytes of text; expected at most {MAX_PROMPT_BYTES}")


def is_pair(each: Input) -> TypeGuard[classification_pb2.ClassifyInput]:
    """Return whether `each` is a text pair."""
    return isinstance(each, classification_pb2.ClassifyInput) and each.HasField("text_pair")


def check_lengths(lengths: Sequence[int], model: ModelInfo, num_virtual: int = 0) -> None:
    """Check that inputs of these `lengths` fit the context, with an adapter's virtual tokens.

    Raises:
        InvalidArgumentError: One does not.
    """
    for index, length in enumerate(lengths):
        if length > model.context_length - num_virtual:
            raise _too_long(f"inputs[{index}]", length, model, num_virtual)


def _texts(each: Input) -> tuple[str, ...]:
    return (each.text, each.text_pair) if is_pair(each) else (each.text,)


def _check_input(field: str, each: Input, model: ModelInfo) -> None:
    one_of({f"{field}.text": each.HasField("text"), f"{field}.token_ids": each.token_ids})
    if each.HasField("text"):
        check_readable(f"{field}.text", "set token_ids", model)
    elif is_pair(each):
        raise wrong(
            f"{field}.text_pair",
            f"is set together with {field}.token_ids; set {field}.text instead, or put the tokens "
            "of both texts into token_ids",
        )
    if len(each.token_ids) > model.context_length:
        raise _too_long(f"{field}.token_ids", len(each.token_ids), model)


def _too_long(
    field: str, length: int, model: ModelInfo, num_virtual: int = 0
) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field} has {length} tokens{extras(num_virtual)}; the context has {model.context_length}",
        reason="CONTEXT_LENGTH_EXCEEDED",
        field=field,
    )
