"""Validation of predicted outputs: what the caller expects the completions to be."""

from collections.abc import Sequence

from loramux.v1 import generation_pb2
from loramux_server.field_errors import wrong
from loramux_server.services.limits import check_tokens
from loramux_server.services.text_fields import check_text_or_tokens
from loramux_server.wire.model_info import ModelInfo

TEXT, TOKENS = "prediction", "prediction_token_ids"


def check_prediction(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    """Check that the prediction of `request`, if there is one, can be tokenized.

    Raises:
        InvalidArgumentError: It cannot; the message names the field, its value and what would be
            right.
    """
    tokens = request.prediction_token_ids
    check_text_or_tokens(TEXT, request.prediction, TOKENS, tokens, model)
    _check_length(TOKENS, len(tokens), model)


def check_predicted(
    request: generation_pb2.GenerateRequest,
    predicted: Sequence[int],
    model: ModelInfo,
    vocab_size: int,
) -> None:
    """Check that a completion could be what `request` predicts.

    Args:
        request: The request.
        predicted: The tokens that it predicts.
        model: The base model.
        vocab_size: Vocabulary size with the adapter of the request.

    Raises:
        InvalidArgumentError: None could; the message names the field, its value and what would be
            right.
    """
    field = TEXT if request.prediction else TOKENS
    _check_length(field, len(predicted), model)
    check_tokens(field, predicted, vocab_size)


def _check_length(field: str, num_tokens: int, model: ModelInfo) -> None:
    if num_tokens > model.context_length:
        raise wrong(
            field, f"has {num_tokens} tokens; expected at most {model.context_length}, the context"
        )
