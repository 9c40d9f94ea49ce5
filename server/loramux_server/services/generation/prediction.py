"""What a caller thinks that the completions of a request will be: whether it may be told so."""

from collections.abc import Sequence

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.services.limits import MAX_PROMPT_BYTES, check_tokens
from loramux_server.wire.model_info import ModelInfo

TEXT, TOKENS = "prediction", "prediction_token_ids"


def check_prediction(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    """Demand that what `request` predicts, if it does, may become tokens.

    Raises:
        InvalidArgumentError: It may not; the message names the field, its value and what would be
            right.
    """
    if not request.prediction:
        _check_length(TOKENS, len(request.prediction_token_ids), model)
        return
    if request.prediction_token_ids:
        raise _wrong(TEXT, f"and {TOKENS} are both set; set one of them")
    if model.tokenizer_json is None:
        raise _wrong(TEXT, f"is text, but the base model came without a tokenizer; set {TOKENS}")
    size = len(request.prediction.encode("utf-8", "surrogatepass"))
    if size > MAX_PROMPT_BYTES:
        raise _wrong(TEXT, f"has {size} bytes; at most {MAX_PROMPT_BYTES}")


def check_predicted(
    request: generation_pb2.GenerateRequest,
    predicted: Sequence[int],
    model: ModelInfo,
    vocab_size: int,
) -> None:
    """Demand that a completion may be what `request` predicts.

    Args:
        request: The request.
        predicted: The tokens that it predicts.
        model: The base model.
        vocab_size: How many tokens there are with the adapter of the request.

    Raises:
        InvalidArgumentError: None may; the message names the field, its value and what would be
            right.
    """
    field = TEXT if request.prediction else TOKENS
    _check_length(field, len(predicted), model)
    check_tokens(field, predicted, vocab_size)


def _check_length(field: str, num_tokens: int, model: ModelInfo) -> None:
    if num_tokens > model.context_length:
        raise _wrong(
            field, f"has {num_tokens} tokens; at most {model.context_length}, as the context"
        )


def _wrong(field: str, said: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {said}", reason="INVALID_FIELD", field=field)
