"""Truncation of prompts: only the last tokens are kept."""

from collections.abc import Sequence
from typing import Final

from loramux.v1 import generation_pb2
from loramux_server.field_errors import invalid
from loramux_server.services.context_room import is_empty
from loramux_server.services.generation.images import images_of
from loramux_server.wire.model_info import ModelInfo

_FIELD: Final = "truncate_prompt_tokens"
_WHAT_FITS = -1


def check_truncation(request: generation_pb2.GenerateRequest) -> None:
    """Check how `request` wants its prompt to be truncated, if it does.

    Raises:
        InvalidArgumentError: It is no number of tokens, or there are images.
    """
    if not request.HasField(_FIELD):
        return
    most = request.truncate_prompt_tokens
    if most < 1 and most != _WHAT_FITS:
        raise invalid(_FIELD, most, "an integer from 1, or -1 for as many as fit")
    if any(True for _ in images_of(request)):
        raise invalid(_FIELD, most, "none with images")


def max_prompt_tokens(
    request: generation_pb2.GenerateRequest, model: ModelInfo, num_virtual: int
) -> int | None:
    """Return how many tokens of the prompt are kept; None for all of them.

    Args:
        request: The request.
        model: The base model.
        num_virtual: Virtual tokens of the adapter.
    """
    if not request.HasField(_FIELD):
        return None
    if request.truncate_prompt_tokens != _WHAT_FITS:
        return request.truncate_prompt_tokens
    if model.source_length:
        return max(1, model.source_length - num_virtual)
    room = 0 if is_empty(request.sampling) else max(1, request.sampling.max_tokens)
    return max(1, model.context_length - num_virtual - room)


def last_tokens(tokens: list[int], text: Sequence[int], most: int) -> list[int]:
    """Return the last `most` of `tokens`, and all of those that surround the text.

    Args:
        tokens: The tokens of a prompt, more than `most`.
        text: Those of its text alone, without what the tokenizer adds before and after it.
        most: How many are returned.
    """
    num_added = len(tokens) - len(text)
    for start in range(num_added + 1 if num_added < most else 0):
        end = start + len(text)
        if tokens[start:end] == list(text):
            return [*tokens[:start], *tokens[end - (most - num_added) : end], *tokens[end:]]
    return tokens[-most:]
