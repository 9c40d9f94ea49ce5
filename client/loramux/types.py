"""Arguments and results of calls."""

import enum
from dataclasses import dataclass

from loramux._adapter_types import Adapter, AdapterChange, AdapterStatus, AliasMove
from loramux._answer_types import Answer, Answers, QuestionAnswering
from loramux._classification_types import Classification, LabelScore, TextLabels, TokenLabels
from loramux._embedding_types import Embedding
from loramux._image import Image
from loramux._option_types import (
    GenerationOptions,
    Mix,
    PromptOptions,
    RequestOptions,
    SamplingOptions,
)
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


class FinishReason(enum.StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """An end token, a stop string or a stop token."""
    LENGTH = "length"
    """max_tokens or the context length was reached."""
    TOOL_CALLS = "tool_calls"
    """The model ended it and made tool calls."""
    UNKNOWN = "unknown"
    """A reason of a newer server that this client does not know."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log-probability of a token in the model's own distribution."""

    token_id: int
    logprob: float
    """NaN for the first token of a prompt."""
    utf8: bytes = b""
    """Its text, which may be an incomplete character; empty if the model has no tokenizer."""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The log-probabilities at one position of a completion or a prompt."""

    chosen: TokenLogprob
    """The token that was chosen, or the token of the prompt."""
    top: tuple[TokenLogprob, ...]
    """The likeliest tokens, likeliest first."""
    rank: int | None = None
    """Rank of `chosen` among all tokens, 1 for the likeliest; only for the tokens of a prompt after
    the first."""


@dataclass(frozen=True, slots=True)
class AdapterIdentity:
    """Identifies exactly the adapter that was used."""

    name: str
    digest: str
    """`sha256:` and the hexadecimal SHA-256 of the package."""
    tenant: str
    version: int

    @property
    def reference(self) -> str:
        """A reference to exactly this version: `tenant/name:version@digest`."""
        return f"{self.tenant}/{self.name}:{self.version}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    """Over all completions."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache, for which nothing was computed."""
    reasoning_tokens: int = 0
    """Tokens of the completions that are reasoning, with those that mark its beginning."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency breakdown, in seconds on the server's clock."""

    queue_seconds: float
    time_to_first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of the prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    """The tokens, including the end token."""
    finish_reason: FinishReason
    stop_string: str | None
    """The stop string that ended it, if one did."""
    stop_token_id: int | None
    """The token that ended it, if one did."""
    logprobs: tuple[PositionLogprobs, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls made by the model, which are not part of the text."""
    reasoning: str = ""
    """The model's reasoning before its answer, which is not part of the text."""
    beam_score: float | None = None
    """Sum of the log-probabilities of its tokens, divided by their number to the power of
    `length_penalty`; None without a beam search."""

    @property
    def message(self) -> Message:
        """The completion as a turn of the conversation, to continue it with."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.reasoning:
            message["reasoning"] = self.reasoning
        return message


@dataclass(frozen=True, slots=True)
class Generation:
    """The result of a request. The fields of its first completion are available directly."""

    request_id: str
    completions: tuple[Completion, ...]
    adapter: AdapterIdentity | None
    """None for the base model and for a mix."""
    adapters: tuple[AdapterIdentity, ...]
    """All adapters that were used, in the order of the request."""
    usage: Usage
    timing: Timing
    sampling: SamplingOptions
    """The parameters that were used: those of the call, and defaults of the adapter or the
    server."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """An entry for each token of the prompt, if requested."""

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
        """Log-probabilities of the first completion, if requested."""
        return self.completions[0].logprobs

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls of the first completion."""
        return self.completions[0].tool_calls

    @property
    def reasoning(self) -> str:
        """Reasoning before the text of the first completion."""
        return self.completions[0].reasoning

    @property
    def message(self) -> Message:
        """The first completion as a turn of the conversation."""
        return self.completions[0].message


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next part of a completion."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    finish_reason: FinishReason | None
    """Set in the last part of each completion."""
    stop_string: str | None
    stop_token_id: int | None
    request_id: str
    """Set in the first chunk of a stream, empty in the others."""
    adapter: AdapterIdentity | None
    """Set in the first chunk of a stream; None for the base model and for a mix."""
    adapters: tuple[AdapterIdentity, ...]
    """All adapters in use, in the order of the request; set in the first chunk of a stream."""
    usage: Usage | None
    """Set in the last chunk of a stream."""
    timing: Timing | None
    """Set in the last chunk of a stream."""
    sampling: SamplingOptions | None
    """The parameters in use; set in the first chunk of a stream."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls made by the model, each in one chunk."""
    reasoning: str = ""
    """The next part of the model's reasoning before its answer."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """Set in the first chunk of a stream, if requested."""
    prompt_tokens: int = 0
    """Length of the prompt in tokens; set in the first chunk of a stream."""
    beam_score: float | None = None
    """As in `Completion`; a beam search returns each completion in one chunk, at the end."""
