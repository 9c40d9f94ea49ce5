"""How much room a prompt, and an adapter's virtual tokens, leave in the context."""

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.wire.model_info import ModelInfo


def context_room(
    field: str,
    num_prompt: int,
    params: generation_pb2.SamplingParams,
    model: ModelInfo,
    num_virtual: int = 0,
    num_image_tokens: int = 0,
) -> int:
    """Return how many tokens may follow a prompt of `num_prompt` tokens from the field `field`.

    `num_image_tokens` of these tokens stand for images; an adapter adds `num_virtual` tokens. For
    an encoder-decoder, the length of the output does not depend on that of the prompt.

    Raises:
        InvalidArgumentError: The prompt is too long, or leaves no room for a completion.
    """
    if model.source_length:
        if num_prompt + num_virtual > model.source_length:
            raise InvalidArgumentError(
                f"{field} has {num_prompt} tokens{extras(num_virtual, num_image_tokens)}; expected "
                f"at most {model.source_length}, the input length of the base model",
                reason="CONTEXT_LENGTH_EXCEEDED",
                field=field,
            )
        return model.output_length
    room = model.context_length - num_prompt - num_virtual
    if room < (0 if is_empty(params) else 1):
        rest = "is smaller" if is_empty(params) else "leaves no room for a completion"
        raise InvalidArgumentError(
            f"{field} has {num_prompt} tokens{extras(num_virtual, num_image_tokens)}; the context "
            f"of {model.context_length} {rest}",
            reason="CONTEXT_LENGTH_EXCEEDED",
            field=field,
        )
    return room


def completion_room(
    num_prompt: int,
    params: generation_pb2.SamplingParams,
    model: ModelInfo,
    num_virtual: int = 0,
    num_image_tokens: int = 0,
    num_decoder_prompt: int = 0,
) -> int:
    """Return the same for a prompt from any field, and check that `max_tokens` fits.

    For an encoder-decoder, the decoder prompt takes `num_decoder_prompt` tokens of it.

    Raises:
        InvalidArgumentError: There is too little room.
    """
    room = context_room("prompt", num_prompt, params, model, num_virtual, num_image_tokens)
    after = (
        f"after a prompt of {num_prompt} tokens{extras(num_virtual, num_image_tokens)} the context "
        f"of {model.context_length}"
    )
    if model.source_length:
        room -= num_decoder_prompt
        after = (
            f"after a decoder prompt of {num_decoder_prompt} tokens the output length of "
            f"{model.output_length}"
        )
        if room < 1:
            raise InvalidArgumentError(
                f"the decoder prompt has {num_decoder_prompt} tokens; the output length of "
                f"{model.output_length} leaves no room for a completion",
                reason="CONTEXT_LENGTH_EXCEEDED",
                field="decoder_prompt",
            )
    if params.HasField("max_tokens") and params.max_tokens > room:
        raise InvalidArgumentError(
            f"sampling.max_tokens is {params.max_tokens}; {after} leaves room for {room}",
            reason="CONTEXT_LENGTH_EXCEEDED",
            field="sampling.max_tokens",
        )
    return room


def is_empty(params: generation_pb2.SamplingParams) -> bool:
    """Return whether no token is to be generated."""
    return params.HasField("max_tokens") and params.max_tokens == 0


def extras(num_virtual: int, num_image_tokens: int = 0) -> str:
    """Return how an error mentions a prompt's image tokens and an adapter's virtual tokens."""
    seen = f" ({num_image_tokens} of them for images)" if num_image_tokens else ""
    return seen + (f" and {num_virtual} virtual tokens of the adapter" if num_virtual else "")
