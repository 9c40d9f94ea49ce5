"""The two forms of choices in OpenAI's API: chats and text completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loramux.gateway.offsets import TextOffsets
from loramux.gateway.prompt_echo import LEAST, NOTHING, Echo, PromptOptions
from loramux.v1 import generation_pb2

Object = dict[str, object]


@dataclass(slots=True)
class ChoiceState:
    """State of one choice: what has been sent of it."""

    echo: Echo = NOTHING
    """The echoed prompt, until it is sent."""
    num_calls: int = 0
    """Tool calls sent."""
    is_begun: bool = False
    offsets: TextOffsets = field(init=False)
    """Offset of its next token."""

    def __post_init__(self) -> None:
        self.offsets = TextOffsets(len(self.echo.text))

    def take_echo(self) -> Echo:
        """Return the echoed prompt the first time, NOTHING afterwards."""
        echo, self.echo = self.echo, NOTHING
        return echo


class Style(Protocol):
    """One of the two forms of choices."""

    prefix: str
    """Prefix of ids."""
    whole: str
    """`object` of an answer."""
    chunk: str
    """`object` of a chunk."""

    repeats_prompt: bool
    """Whether `prompt_logprobs` is a field of each choice, not of the answer, as in vLLM."""

    def message(self, completion: generation_pb2.Completion, state: ChoiceState) -> Object:
        """Return the text and log-probabilities of a complete completion."""

    def delta(self, chunk: generation_pb2.Completion, state: ChoiceState) -> Object:
        """Return those of the next chunk; `state` is what was sent before."""


class ChatStyle:
    """Answers of `/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    repeats_prompt = False

    def message(self, completion: generation_pb2.Completion, state: ChoiceState) -> Object:
        """See `Style`."""
        message: Object = {"role": "assistant", "content": completion.text, "refusal": None}
        if completion.tool_calls:
            message["content"] = completion.text or None
            message["tool_calls"] = [_call(call) for call in completion.tool_calls]
        if completion.reasoning:  # vLLM's name
            message["reasoning"] = completion.reasoning
        return {"message": message, "logprobs": self._logprobs(completion)}

    def delta(self, chunk: generation_pb2.Completion, state: ChoiceState) -> Object:
        """See `Style`."""
        delta: Object = {} if state.is_begun else {"role": "assistant"}
        if chunk.text or not state.is_begun:
            delta["content"] = chunk.text
        if chunk.reasoning:
            delta["reasoning"] = chunk.reasoning
        if chunk.tool_calls:
            delta["tool_calls"] = [
                {"index": index} | _call(call)
                for index, call in enumerate(chunk.tool_calls, state.num_calls)
            ]
        return {"delta": delta, "logprobs": self._logprobs(chunk)}

    def _logprobs(self, completion: generation_pb2.Completion) -> Object | None:
        if not completion.logprobs:
            return None
        return {"content": logprobs_of(completion.logprobs), "refusal": None}


class CompletionStyle:
    """Answers of `/v1/completions`."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"
    repeats_prompt = True

    def __init__(self, options: PromptOptions) -> None:
        """Initialize; `options` say what to return of prompts."""
        self._num_logprobs = options.num_logprobs

    def message(self, completion: generation_pb2.Completion, state: ChoiceState) -> Object:
        """See `Style`."""
        echo = state.take_echo()
        return {
            "text": echo.text + completion.text,
            "logprobs": self._logprobs(echo, completion, state.offsets),
        }

    def delta(self, chunk: generation_pb2.Completion, state: ChoiceState) -> Object:
        """See `Style`."""
        return self.message(chunk, state)

    def _logprobs(
        self, echo: Echo, completion: generation_pb2.Completion, offsets: TextOffsets
    ) -> Object | None:
        positions = [*echo.positions, *completion.logprobs]
        if not positions:
            return None
        numbers: list[float | None] = [_number(each.chosen) for each in positions]
        # The server returns more of them if `prompt_logprobs` asks for more.
        top: list[object] = [_by_name(each.top[: self._num_logprobs]) for each in positions]
        if echo.positions:
            numbers[0] = top[0] = None  # nothing predicts the first token
        return {
            "tokens": [_name(each.chosen) for each in positions],
            "token_logprobs": numbers,
            "top_logprobs": top,
            "text_offset": [
                *echo.offsets,
                *offsets.of(each.chosen for each in completion.logprobs),
            ],
        }


def logprobs_of(positions: Sequence[generation_pb2.PositionLogprobs]) -> list[Object]:
    """Return the log-probabilities of `positions` in the form of chats."""
    return [
        _token(position.chosen) | {"top_logprobs": [_token(each) for each in position.top]}
        for position in positions
    ]


def _call(call: generation_pb2.ToolCall) -> Object:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _token(token: generation_pb2.TokenLogprob) -> Object:
    return {
        "token": _name(token),
        "logprob": _number(token),
        "bytes": list(token.utf8) if token.utf8 else None,
    }


def _by_name(tokens: Sequence[generation_pb2.TokenLogprob]) -> dict[str, float]:
    """Return text -> log-probability; of tokens with the same text, the first, likeliest one's."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(_name(token), _number(token))
    return found


def _name(token: generation_pb2.TokenLogprob) -> str:
    """Return the text of a token; partial characters are escaped as in OpenAI's API."""
    if not token.utf8:  # the server has no tokenizer
        return f"token_id:{token.token_id}"
    try:
        return token.utf8.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.utf8)


def _number(token: generation_pb2.TokenLogprob) -> float:
    return max(token.logprob, LEAST)
