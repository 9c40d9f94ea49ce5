"""How the two kinds of answers of OpenAI's API look: chats and texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loramux.gateway.offsets import TextOffsets
from loramux.gateway.told_prompt import LEAST, NOTHING, Echo, PromptOptions
from loramux.v1 import generation_pb2

Object = dict[str, object]


@dataclass(slots=True)
class Written:
    """What has been told of one choice."""

    echo: Echo = NOTHING
    """What comes before its text, and was not told yet."""
    num_calls: int = 0
    """Tools that were called."""
    is_begun: bool = False
    offsets: TextOffsets = field(init=False)
    """Where its next token begins."""

    def __post_init__(self) -> None:
        self.offsets = TextOffsets(len(self.echo.text))

    def take_echo(self) -> Echo:
        """Return what comes before its text, once."""
        echo, self.echo = self.echo, NOTHING
        return echo


class Style(Protocol):
    """How one of the two kinds of answers looks."""

    prefix: str
    """What ids begin with."""
    whole: str
    """What an answer is called."""
    piece: str
    """What a piece of one is called."""

    repeats_prompt: bool
    """Whether each choice has the `prompt_logprobs`, as vLLM has it, and not the answer."""

    def message(self, completion: generation_pb2.Completion, written: Written) -> Object:
        """Return the text and log-probabilities of a whole completion."""

    def delta(self, piece: generation_pb2.Completion, written: Written) -> Object:
        """Return those of the next piece of one, of which so much is `written`."""


class ChatStyle:
    """Answers of `/v1/chat/completions`."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    repeats_prompt = False

    def message(self, completion: generation_pb2.Completion, written: Written) -> Object:
        """See `Style`."""
        message: Object = {"role": "assistant", "content": completion.text, "refusal": None}
        if completion.tool_calls:
            message["content"] = completion.text or None
            message["tool_calls"] = [_call(call) for call in completion.tool_calls]
        if completion.reasoning:  # as vLLM calls it
            message["reasoning"] = completion.reasoning
        return {"message": message, "logprobs": self._logprobs(completion)}

    def delta(self, piece: generation_pb2.Completion, written: Written) -> Object:
        """See `Style`."""
        delta: Object = {} if written.is_begun else {"role": "assistant"}
        if piece.text or not written.is_begun:
            delta["content"] = piece.text
        if piece.reasoning:
            delta["reasoning"] = piece.reasoning
        if piece.tool_calls:
            delta["tool_calls"] = [
                {"index": index} | _call(call)
                for index, call in enumerate(piece.tool_calls, written.num_calls)
            ]
        return {"delta": delta, "logprobs": self._logprobs(piece)}

    def _logprobs(self, completion: generation_pb2.Completion) -> Object | None:
        if not completion.logprobs:
            return None
        return {"content": logprobs_of(completion.logprobs), "refusal": None}


class CompletionStyle:
    """Answers of `/v1/completions`."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"
    repeats_prompt = True

    def __init__(self, options: PromptOptions) -> None:
        """Prepare; `options` say what is given back of prompts."""
        self._num_logprobs = options.num_logprobs

    def message(self, completion: generation_pb2.Completion, written: Written) -> Object:
        """See `Style`."""
        echo = written.take_echo()
        return {
            "text": echo.text + completion.text,
            "logprobs": self._logprobs(echo, completion, written.offsets),
        }

    def delta(self, piece: generation_pb2.Completion, written: Written) -> Object:
        """See `Style`."""
        return self.message(piece, written)

    def _logprobs(
        self, echo: Echo, completion: generation_pb2.Completion, offsets: TextOffsets
    ) -> Object | None:
        positions = [*echo.positions, *completion.logprobs]
        if not positions:
            return None
        numbers: list[float | None] = [_number(each.chosen) for each in positions]
        # Of which the server may tell more, where vLLM's `prompt_logprobs` asks for it.
        top: list[object] = [_by_name(each.top[: self._num_logprobs]) for each in positions]
        if echo.positions:
            numbers[0] = top[0] = None  # nothing is before the first token
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
    """Return what is told of each of `positions` in a chat."""
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
    """Return the log-probability of each; of tokens with one text that of the likeliest."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(_name(token), _number(token))
    return found


def _name(token: generation_pb2.TokenLogprob) -> str:
    """Return the text of a token, as OpenAI's API writes parts of characters."""
    if not token.utf8:  # what has no text: there is no tokenizer
        return f"token_id:{token.token_id}"
    try:
        return token.utf8.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.utf8)


def _number(token: generation_pb2.TokenLogprob) -> float:
    return max(token.logprob, LEAST)
