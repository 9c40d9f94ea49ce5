"""The decoder prompt of encoder-decoders."""

from collections.abc import Mapping, Sequence
from typing import cast

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_adapters.generation import DECODER_START, FORCED_BOS
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.limits import check_tokens
from loramux_server.services.text_fields import check_text_or_tokens
from loramux_server.wire.model_info import ModelInfo

TEXT, TOKENS = "decoder_prompt", "decoder_prompt_token_ids"


def check_decoder_prompt(request: generation_pb2.GenerateRequest, model: ModelInfo) -> None:
    """Check that the base model supports the decoder prompt and prompt log-probabilities asked for.

    Raises:
        InvalidArgumentError: It does not; the message names the field, its value and what would be
            right.
    """
    field = _field(request)
    if model.writing is None:
        if not field:
            return
        what = f"is set, but the base model, {model.architecture}, is decoder-only"
        raise wrong(field, f"{what}; expected none")
    if request.sampling.HasField("prompt_logprobs"):
        expected = (
            f"none: the base model, {model.architecture}, reads the prompt with its encoder, which "
            "computes no log-probabilities"
        )
        raise invalid("sampling.prompt_logprobs", request.sampling.prompt_logprobs, expected)
    tokens = request.decoder_prompt_token_ids
    check_text_or_tokens(TEXT, request.decoder_prompt, TOKENS, tokens, model)
    _check_room(request, len(tokens), model)


def decoder_prompt_tokens(
    request: generation_pb2.GenerateRequest,
    given: Sequence[int],
    defaults: Mapping[str, object],
    model: ModelInfo,
    vocab_size: int,
) -> list[int]:
    """Return the tokens with which the decoder begins; none for a decoder-only model.

    Args:
        request: A checked request.
        given: The tokens of its decoder prompt.
        defaults: The generation defaults of its adapter.
        model: The base model.
        vocab_size: Vocabulary size with the adapter.

    Raises:
        InvalidArgumentError: They leave no room for a completion, or one is not in the vocabulary.
    """
    writing = model.writing
    if writing is None:
        return []
    check_tokens(_field(request) or TEXT, given, vocab_size)
    start = cast(int, defaults.get(DECODER_START, writing.decoder_start))
    forced = cast(int | None, defaults.get(FORCED_BOS, writing.forced_bos))
    first = list(given) or ([] if forced is None else [forced])
    tokens = first if first[:1] == [start] else [start, *first]
    _check_room(request, len(tokens), model)
    return tokens


def _check_room(
    request: generation_pb2.GenerateRequest, num_decoder_prompt: int, model: ModelInfo
) -> None:
    if num_decoder_prompt >= model.output_length:
        field = _field(request) or TEXT
        raise InvalidArgumentError(
            f"{field} has {num_decoder_prompt} tokens with the decoder's own; the output length of "
            f"{model.output_length} leaves no room for a completion",
            reason="CONTEXT_LENGTH_EXCEEDED",
            field=field,
        )


def _field(request: generation_pb2.GenerateRequest) -> str:
    """Return the field that holds the decoder prompt of `request`; empty if there is none."""
    return TEXT if request.decoder_prompt else TOKENS if request.decoder_prompt_token_ids else ""
