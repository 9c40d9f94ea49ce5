"""From what the server answers to OpenAI's objects."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loramux.gateway.offsets import TextOffsets
from loramux.gateway.told_prompt import (
    LEAST,
    NOTHING,
    Echo,
    PromptOptions,
    echo_of,
    prompt_logprobs,
)
from loramux.types import ServerInfo
from loramux.v1 import generation_pb2

_FINISH = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

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
        content = [
            _token(position.chosen) | {"top_logprobs": [_token(each) for each in position.top]}
            for position in completion.logprobs
        ]
        return {"content": content, "refusal": None}


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


class Answers:
    """Makes the objects of one answer, which may be for several prompts."""

    def __init__(
        self,
        style: Style,
        *,
        request_id: str,
        model: str,
        server: ServerInfo,
        num_completions: int,
        return_token_ids: bool,
        asked: Sequence[generation_pb2.GenerateRequest],
        of_prompts: PromptOptions,
    ) -> None:
        """Prepare.

        Args:
            style: How they look.
            request_id: What the id is made of.
            model: What the request called the model.
            server: Who answers.
            num_completions: Completions of each prompt.
            return_token_ids: Whether each choice tells its tokens.
            asked: What the server is asked, for each prompt.
            of_prompts: What is told of the prompts.
        """
        self._style = style
        self._head: Object = {
            "id": style.prefix + request_id,
            "object": style.piece,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": server.fingerprint,
        }
        self._num_completions = num_completions
        self._return_token_ids = return_token_ids
        self._asked = asked
        self._of_prompts = of_prompts
        self._echoes: dict[int, Echo] = {}
        """Of each prompt of which something was answered."""
        self._written: dict[int, Written] = {}
        """Of choices of which a piece was made."""

    def whole(self, responses: Sequence[generation_pb2.GenerateResponse]) -> Object:
        """Return the answer; `responses` are in the order of the prompts."""
        choices = []
        told: Object = {}
        count = self._of_prompts.num_prompt_logprobs
        for place, response in enumerate(responses):
            if count is not None:
                told = {"prompt_logprobs": prompt_logprobs(count, response.prompt_logprobs)}
            echo = echo_of(self._of_prompts, self._asked[place], response.prompt_logprobs)
            for completion in response.completions:
                choice = self._choice(
                    place, completion, self._style.message(completion, Written(echo))
                )
                choices.append(choice | told if self._style.repeats_prompt else choice)
        answer = self._head | {
            "object": self._style.whole,
            "choices": choices,
            "usage": usage_of([response.usage for response in responses]),
        }
        return answer if self._style.repeats_prompt else answer | told

    def piece(self, place: int, response: generation_pb2.StreamGenerateResponse) -> Object | None:
        """Return the next piece, of the prompt at `place`; None if it would tell nothing."""
        delta = response.delta
        index = self._index(place, delta)
        if place not in self._echoes:
            prompt = response.prompt_logprobs
            self._echoes[place] = echo_of(self._of_prompts, self._asked[place], prompt)
        if index not in self._written:
            self._written[index] = Written(self._echoes[place])
        written = self._written[index]
        # Such as the first bytes of a character.
        is_empty = not (
            delta.text
            or delta.reasoning
            or delta.tool_calls
            or delta.finish_reason
            or delta.logprobs
        )
        if is_empty and written.is_begun and not self._return_token_ids:
            return None
        said = self._style.delta(delta, written)
        written.is_begun = True
        written.num_calls += len(delta.tool_calls)
        choice = self._choice(place, delta, said)
        return self._head | {"choices": [choice]}

    def last(self, usages: Sequence[generation_pb2.Usage]) -> Object:
        """Return the piece that tells how many tokens there were."""
        return self._head | {"choices": [], "usage": usage_of(usages)}

    def _choice(self, place: int, completion: generation_pb2.Completion, said: Object) -> Object:
        choice = {"index": self._index(place, completion)} | said
        choice["finish_reason"] = _FINISH.get(completion.finish_reason)
        if self._return_token_ids:
            choice["token_ids"] = list(completion.token_ids)
        return choice

    def _index(self, place: int, completion: generation_pb2.Completion) -> int:
        return place * self._num_completions + completion.index


def usage_of(usages: Sequence[generation_pb2.Usage]) -> Object:
    """Return the sum of `usages`."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
    }


def adapter_header(identities: Sequence[generation_pb2.AdapterIdentity]) -> str:
    """Return which versions answered, as references; empty for the base model."""
    return ", ".join(
        f"{each.tenant}/{each.name}:{each.version}@{each.digest}" for each in identities
    )


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
