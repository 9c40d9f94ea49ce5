"""Request bodies: which fields exist, and their types.

Values are validated by the server.
"""

from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from loramux.gateway.prompt_echo import PromptOptions
from loramux.gateway.refusal import invalid, unsupported
from loramux.gateway.tools import NamedTool, Tool, ToolCall

Priority = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
"""Order among the requests of a tenant; lower goes first."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream contains in addition to its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: whether each chunk has the token counts so far. Like there, it has an effect only
    with `include_usage`."""
    include_obfuscation: bool = False
    """Whether padding should hide the length of chunks. Ignored: there is no padding."""


class WeightedAdapter(msgspec.Struct, forbid_unknown_fields=True):
    """One adapter of a mix. Not part of OpenAI's API."""

    name: str
    scale: float = 1.0


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class ObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """A JSON object."""


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema, which is always enforced strictly."""

    schema: dict[str, object]
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """A value that is valid for a JSON schema."""

    json_schema: NamedSchema


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's constraints on the output. Not part of OpenAI's API."""

    json: str | dict[str, object] | None = None
    """A JSON schema."""
    json_object: bool = False
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Prediction(msgspec.Struct, forbid_unknown_fields=True):
    """The expected output (OpenAI's predicted outputs)."""

    type: Literal["content"]
    content: str | list[dict[str, object]]


class SamplingBody(msgspec.Struct, kw_only=True):
    """Model and sampling fields of all generation requests."""

    model: str
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    user: str = ""

    # vLLM's.
    structured_outputs: StructuredOutputs | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority = 0
    cache_salt: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    bad_words: list[str] | None = None

    # loramux's own.
    adapters: list[WeightedAdapter] | None = None
    combination: str | None = None
    timeout: float | None = None


class Body(SamplingBody, kw_only=True):
    """The fields that chats and completions share."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    prediction: Prediction | None = None

    # vLLM's.
    return_token_ids: bool = False
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool = False
    length_penalty: float | None = None

    # loramux's own.
    decoder_prompt: str | list[int] | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to report at each position; None for no log-probabilities at all."""
        raise NotImplementedError

    @property
    def most_tokens(self) -> int | None:
        """Maximum number of output tokens."""
        return self.max_tokens

    @property
    def num_beams(self) -> int:
        """Number of beams of a beam search."""
        return 1 if self.n is None else self.n

    @property
    def called(self) -> dict[str, str]:
        """Field of the server's request -> field of this body, where the names differ."""
        found = {"num_beams": "n"}
        if self.structured_outputs and self.structured_outputs.json is not None:
            found["structured_output.json_schema"] = "structured_outputs.json"
        return found

    @property
    def of_prompts(self) -> PromptOptions:
        """What to return of prompts."""
        if self.stream and self.prompt_logprobs is not None:
            raise unsupported(
                "prompt_logprobs",
                f"prompt_logprobs is {self.prompt_logprobs}; it is not supported with stream",
            )
        return PromptOptions(num_prompt_logprobs=self.prompt_logprobs)


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message. Other fields of an answer's message are accepted, for clients that resend it."""

    role: str
    content: str | list[dict[str, object]] | None = None
    name: str | None = None
    """The author's name; chat templates get it for tool messages only."""
    refusal: None = None
    annotations: list[object] | None = None
    """Citations in OpenAI's answers; ignored."""
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The former name of `reasoning`."""


class ChatBody(Body, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Tool] = []
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None

    # vLLM's.
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, object] | None = None

    # SGLang's.
    separate_reasoning: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """See `Body`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid(
                "top_logprobs", f"top_logprobs is {self.top_logprobs}; set logprobs to true with it"
            )
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """See `Body`."""
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise invalid(
                "max_tokens",
                f"max_tokens is {self.max_tokens} and max_completion_tokens is "
                f"{self.max_completion_tokens}; set one of them",
            )
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def called(self) -> dict[str, str]:
        """See `Body`."""
        found = super().called | {"logprobs": "top_logprobs"}
        if self.max_tokens is None and self.max_completion_tokens is not None:
            found["max_tokens"] = "max_completion_tokens"
        return found


class CompletionBody(Body, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: object
    """Text, token ids, or a list of either."""
    logprobs: int | None = None
    echo: bool = False
    best_of: int | None = None
    add_special_tokens: bool = True
    parse_special_tokens: bool = False

    @property
    def num_logprobs(self) -> int | None:
        """See `Body`."""
        return self.logprobs

    @property
    def num_beams(self) -> int:
        """See `Body`."""
        return super().num_beams if self.best_of is None else self.best_of

    @property
    def called(self) -> dict[str, str]:
        """See `Body`."""
        found = super().called
        return found if self.best_of is None else found | {"num_beams": "best_of"}

    @property
    def of_prompts(self) -> PromptOptions:
        """See `Body`."""
        return replace(
            super().of_prompts,
            echoes=self.echo,
            num_logprobs=self.logprobs,
            are_truncated=self.truncate_prompt_tokens is not None,
        )
