"""The values that calls take and return."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from loramux._adapter_types import Adapter, AdapterChange, AdapterStatus, AliasMove
from loramux._answer_types import Answer, Answers, QuestionAnswering
from loramux._classification_types import Classification, LabelScore, TextLabels, TokenLabels
from loramux._embedding_types import Embedding
from loramux._image import Image
from loramux._server_types import QuarantineEntry, ServerInfo, ServerLoad, TierLoad
from loramux._token_types import Tokens
from loramux._tool_types import ContentPart, Message, ToolCall, ToolOptions

__all__ = [
    "Adapter",
    "AdapterChange",
    "AdapterIdentity",
    "AdapterStatus",
    "AliasMove",
    "Answer",
    "Answers",
    "Chunk",
    "Classification",
    "Completion",
    "ContentPart",
    "Embedding",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "Image",
    "LabelScore",
    "Message",
    "Mix",
    "PositionLogprobs",
    "PromptOptions",
    "QuarantineEntry",
    "QuestionAnswering",
    "RequestOptions",
    "SamplingOptions",
    "ServerInfo",
    "ServerLoad",
    "TextLabels",
    "TierLoad",
    "Timing",
    "TokenLabels",
    "TokenLogprob",
    "Tokens",
    "ToolCall",
    "ToolOptions",
    "Usage",
]


Mix: TypeAlias = Mapping[str, float] | Sequence[tuple[str, float]]
"""References to the adapters of a mix, each with its weight."""


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen and when to stop. What is left out has the server's default.

    The fields are those of `loramux.v1.SamplingParams`, whose comments say what each means, and in
    place of `structured_output` the forms that it may want of a text, of which one can be given.
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
    """What becomes of a prompt, by which adapters, and under which name; each may be left out."""

    request_id: str
    """Names the request in replies and logs."""
    parse_special_tokens: bool
    """Let text such as `</s>` in the prompt be a control token; False."""
    add_special_tokens: bool
    """Let the tokenizer add its own tokens to a text prompt; True."""
    add_generation_prompt: bool
    """End the prompt of `messages` with what begins an answer; True."""
    routing_key: str
    """Chooses the version where an alias stands for several: equal keys, such as the id of a user,
    get the same one. Where empty, chance decides."""
    adapters: Mix
    """References to up to 4 adapters, each with its weight, in place of `adapter`."""
    combination: str | None
    """How they are mixed, as PEFT's `add_weighted_adapter` does it: `cat`, which is what None
    means, or `linear`."""
    scale: float | None
    """Multiplies what `adapter` changes; None means 1."""


class GenerationOptions(SamplingOptions, ToolOptions, total=False):
    """What a call of `generate` may say of the text that comes."""

    prediction: str | Sequence[int]
    """What every completion will be, for the most part, as text or token ids. It changes none of
    them: tokens come sooner where it is right, if the server drafts tokens."""
    decoder_prompt: str | Sequence[int]
    """What the text begins with that is written, as text or token ids, such as the token of a
    language; for base models that read the prompt with an encoder."""


class RequestOptions(PromptOptions, GenerationOptions, total=False):
    """All that a call of `generate` may say beside what is to be continued, and by what."""


class FinishReason(enum.StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """The model ended it, or a stop string or token came."""
    LENGTH = "length"
    """max_tokens or the context was reached."""
    TOOL_CALLS = "tool_calls"
    """The model ended it, and asks for calls of tools."""
    UNKNOWN = "unknown"
    """The server is newer and gave a reason that this client does not know."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log-probability of a token in the model's own distribution."""

    token_id: int
    logprob: float
    """NaN for the first token of a prompt, before which nothing is."""
    utf8: bytes = b""
    """Its text, which may be a part of a character; empty where the model has no tokenizer."""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The log-probabilities at one position of a completion or a prompt."""

    chosen: TokenLogprob
    """The token that was chosen, or that the prompt has there."""
    top: tuple[TokenLogprob, ...]
    """The likeliest tokens, likeliest first."""
    rank: int | None = None
    """Place of `chosen` among all tokens, 1 for the likeliest; told of a prompt's tokens alone, but
    for the first."""


@dataclass(frozen=True, slots=True)
class AdapterIdentity:
    """Exactly which adapter answered."""

    name: str
    digest: str
    """`sha256:` and the hexadecimal SHA-256 of the package."""
    tenant: str
    version: int

    @property
    def reference(self) -> str:
        """What to call it by, so that nothing else is meant: `tenant/name:version@digest`."""
        return f"{self.tenant}/{self.name}:{self.version}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    """Over all completions."""
    cached_tokens: int = 0
    """Tokens of the prompt for which nothing was computed: they were in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in seconds on the server's clock."""

    queue_seconds: float
    time_to_first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of the prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    """The tokens, the end token included."""
    finish_reason: FinishReason
    stop_string: str | None
    """The stop string that ended it, if one did."""
    stop_token_id: int | None
    """The token that ended it, if one did."""
    logprobs: tuple[PositionLogprobs, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the model asks for, which are no part of the text."""
    reasoning: str = ""
    """What the model thought before its answer, which is no part of the text."""
    beam_score: float | None = None
    """Sum of the log-probabilities of its tokens, divided by their number to the power of
    `length_penalty`; None without a beam search."""

    @property
    def message(self) -> Message:
        """This as a turn of the conversation, which may be continued after it."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.reasoning:
            message["reasoning"] = self.reasoning
        return message


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one request. The fields of its first completion are at hand directly."""

    request_id: str
    completions: tuple[Completion, ...]
    adapter: AdapterIdentity | None
    """None for the base model and for a mix."""
    adapters: tuple[AdapterIdentity, ...]
    """All that answered, in the order of the request."""
    usage: Usage
    timing: Timing
    sampling: SamplingOptions
    """What was used: what the call said, and the defaults of the adapter or the server."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """An entry for each token of the prompt, where they were asked for."""

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.completions[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the first completion."""
        return self.completions[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first completion ended."""
        return self.completions[0].finish_reason

    @property
    def logprobs(self) -> tuple[PositionLogprobs, ...]:
        """Log-probabilities of the first completion, where they were asked for."""
        return self.completions[0].logprobs

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Calls that the first completion asks for."""
        return self.completions[0].tool_calls

    @property
    def reasoning(self) -> str:
        """What was thought before the text of the first completion."""
        return self.completions[0].reasoning

    @property
    def message(self) -> Message:
        """The first completion as a turn of the conversation."""
        return self.completions[0].message


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of one completion."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    finish_reason: FinishReason | None
    """Set in the last piece of each completion."""
    stop_string: str | None
    stop_token_id: int | None
    request_id: str
    """Set in the first chunk of a stream, empty in the others."""
    adapter: AdapterIdentity | None
    """Set in the first chunk of a stream, unless the base model or a mix answers."""
    adapters: tuple[AdapterIdentity, ...]
    """All that answer, in the order of the request; set in the first chunk of a stream."""
    usage: Usage | None
    """Set in the last chunk of a stream."""
    timing: Timing | None
    """Set in the last chunk of a stream."""
    sampling: SamplingOptions | None
    """Set in the first chunk of a stream: what is used."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the model asks for; each comes when it is whole."""
    reasoning: str = ""
    """What is new of what the model thinks before its answer."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """Set in the first chunk of a stream, where they were asked for."""
    beam_score: float | None = None
    """That of `Completion`: a beam search gives each completion in one piece, at the end."""
