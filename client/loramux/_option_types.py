"""Options of requests; public in `loramux.types`."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

from loramux._tool_types import ToolOptions

Mix: TypeAlias = Mapping[str, float] | Sequence[tuple[str, float]]
"""References to the adapters of a mix, each with its weight."""


class SamplingOptions(TypedDict, total=False):
    """Sampling parameters, stop conditions and structured output; an omitted field has its default.

    The fields are those of `loramux.v1.SamplingParams`, documented there; in place of
    `structured_output` are its forms, of which one can be given.
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    bad_words: str | Sequence[str]
    ignore_eos: bool
    include_stop: bool
    n: int
    logprobs: int
    prompt_logprobs: int
    skip_special_tokens: bool
    num_beams: int
    length_penalty: float
    early_stopping: bool
    json_schema: str | Mapping[str, object]
    json_object: bool
    regex: str
    choice: Sequence[str]
    grammar: str


class PromptOptions(TypedDict, total=False):
    """How a prompt is processed, and with which adapters; every field may be omitted."""

    request_id: str
    """Identifies the request in responses and logs."""
    parse_special_tokens: bool
    """Parse text such as `</s>` in the prompt as special tokens; default: False."""
    add_special_tokens: bool
    """Let the tokenizer add its special tokens to a text prompt; default: True."""
    add_generation_prompt: bool
    """End the formatted `messages` with the start of an assistant turn; default: True."""
    routing_key: str
    """Selects the version if the alias splits traffic: equal keys, such as user ids, get the same
    version. If empty, it is random."""
    priority: int
    """Order among the requests of your tenant: lower goes first; default: 0."""
    cache_salt: str
    """Cached prefixes are shared only between requests with the same salt; default: none."""
    truncate_prompt_tokens: int | None
    """Keep only the last tokens of a longer prompt, this many; -1 keeps as many as fit; None keeps
    all."""
    adapters: Mix
    """References to up to 4 adapters, each with its weight, in place of `adapter`."""
    combination: str | None
    """How they are mixed, as defined by PEFT's `add_weighted_adapter`: `cat` (also for None) or
    `linear`."""
    scale: float | None
    """Multiplies the update of `adapter`; None means 1."""


class GenerationOptions(SamplingOptions, ToolOptions, total=False):
    """Options of `generate` for the output."""

    prediction: str | Sequence[int]
    """Expected output, as text or token ids, for speculative decoding if the server has it enabled.
    Tokens may arrive sooner, but are never changed."""
    decoder_prompt: str | Sequence[int]
    """Text or token ids for the decoder to start with, such as a language token; for
    encoder-decoders."""


class RequestOptions(PromptOptions, GenerationOptions, total=False):
    """All options of `generate` besides the prompt and the adapter."""
