"""Whether texts can be read: those of requests to classify and to embed."""

from collections.abc import Sequence

from loramux.errors import InvalidArgumentError
from loramux.v1 import classification_pb2, embedding_pb2
from loramux_server.engine.model_info import ModelInfo
from loramux_server.services.limits import MAX_PROMPT_BYTES, invalid

MAX_INPUTS = 64
Input = classification_pb2.ClassifyInput | embedding_pb2.EmbedInput


def check_inputs(inputs: Sequence[Input], model: ModelInfo) -> None:
    """Demand that `inputs`, the request field of that name, are within limits.

    Raises:
        InvalidArgumentError: They are not; the message says what would be right.
    """
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise invalid("inputs", f"{len(inputs)} entries", f"1 to {MAX_INPUTS}")
    size = 0
    for index, each in enumerate(inputs):
        _check_input(f"inputs[{index}]", each, model)
        size += len(each.text.encode("utf-8", "surrogatepass"))
    if size > MAX_PROMPT_BYTES:
        raise invalid("inputs", f"{size} bytes of text", f"at most {MAX_PROMPT_BYTES}")


def check_lengths(lengths: Sequence[int], model: ModelInfo) -> None:
    """Demand that inputs of so many tokens fit the context.

    Raises:
        InvalidArgumentError: One does not.
    """
    for index, length in enumerate(lengths):
        if length > model.context_length:
            raise _too_long(f"inputs[{index}]", length, model)


def _check_input(field: str, each: Input, model: ModelInfo) -> None:
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
        raise _too_long(f"{field}.token_ids", len(each.token_ids), model)


def _too_long(field: str, length: int, model: ModelInfo) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field} has {length} tokens; the context has {model.context_length}",
        reason="CONTEXT_LENGTH_EXCEEDED",
        field=field,
    )
