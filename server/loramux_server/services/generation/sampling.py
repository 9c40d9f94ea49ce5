"""Sampling settings and text options of a request, from its `SamplingParams`."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from loramux.v1 import generation_pb2
from loramux_server.forms.form import Form
from loramux_server.services.context_room import completion_room
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling

DEFAULT_MAX_TOKENS = 256
"""For completions of a text; an answer in a conversation may fill the context."""
_SEEDS = 1 << 64


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the text of a completion is post-processed."""

    stops: tuple[str, ...]
    include_stop: bool
    skip_special: bool


def samplings(
    params: generation_pb2.SamplingParams,
    num_prompt: int,
    model: ModelInfo,
    defaults: Mapping[str, object] = MappingProxyType({}),
    *,
    num_virtual: int = 0,
    num_image_tokens: int = 0,
    num_decoder_prompt: int = 0,
    fills_context: bool = False,
    form: Form | None = None,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> list[Sampling]:
    """Return the sampling settings of each of the n completions of a prompt.

    Args:
        params: The request's parameters.
        num_prompt: Tokens of the prompt.
        model: The base model.
        defaults: Provides `max_tokens` if `params` have none.
        num_virtual: Tokens that the adapter puts before the prompt.
        num_image_tokens: Tokens of the prompt that stand for images.
        num_decoder_prompt: Tokens of an encoder-decoder's decoder prompt.
        fills_context: Whether the context is the default limit of each completion.
        form: The form of each completion; None for free text.
        bad_words: Sequences of tokens that are not generated.

    Raises:
        InvalidArgumentError: Prompt and completion do not fit the context.
    """
    room = completion_room(
        num_prompt, params, model, num_virtual, num_image_tokens, num_decoder_prompt
    )
    default = room if fills_context else DEFAULT_MAX_TOKENS
    max_tokens = cast(int, defaults.get("max_tokens", default))
    if params.HasField("max_tokens"):
        max_tokens = params.max_tokens
    forbidden = dict.fromkeys(model.writing.forbidden if model.writing else (), -math.inf)
    seed = params.seed if params.HasField("seed") else secrets.randbits(63)
    return [
        Sampling(
            max_tokens=min(max_tokens, room),
            min_tokens=min(params.min_tokens, room),
            # Seeds are signed 64-bit integers and wrap around.
            seed=(seed + index + _SEEDS // 2) % _SEEDS - _SEEDS // 2,
            temperature=params.temperature if params.HasField("temperature") else 1.0,
            top_k=max(0, params.top_k),
            top_p=params.top_p if params.HasField("top_p") else 1.0,
            min_p=params.min_p,
            repetition_penalty=(
                params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
            ),
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=dict(params.logit_bias) | forbidden,
            bad_words=bad_words,
            stop_token_ids=frozenset(params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            num_logprobs=params.logprobs if params.HasField("logprobs") else None,
            # All completions share the prompt, so only the first reports it.
            num_prompt_logprobs=(
                params.prompt_logprobs
                if params.HasField("prompt_logprobs") and index == 0
                else None
            ),
            form=form,
        )
        for index in range(params.n if params.HasField("n") else 1)
    ]


def text_options(params: generation_pb2.SamplingParams) -> TextOptions:
    """Return how the text is post-processed."""
    return TextOptions(
        stops=tuple(params.stop),
        include_stop=params.include_stop,
        skip_special=params.skip_special_tokens if params.HasField("skip_special_tokens") else True,
    )
