"""The server's responses as OpenAI's objects."""

import time
from collections import Counter
from collections.abc import Sequence

from loramux.errors import LoramuxError
from loramux.gateway.body import StreamOptions
from loramux.gateway.events import event
from loramux.gateway.prompt_echo import Echo, PromptOptions, echo_of, prompt_logprobs
from loramux.gateway.refusal import error_body
from loramux.gateway.styles import ChoiceState, Object, Style
from loramux.types import ServerInfo
from loramux.v1 import generation_pb2

_FINISH = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_DONE = b"data: [DONE]\n\n"
MANY_POSITIONS = 1024
"""Prompt positions with log-probabilities that take too long to encode on the event loop."""


class Answers:
    """Builds the objects of one answer, which may be for several prompts; a `ResponseFormatter`."""

    def __init__(
        self,
        style: Style,
        *,
        request_id: str,
        model: str,
        server: ServerInfo,
        num_completions: int,
        return_token_ids: bool,
        stream_options: StreamOptions,
        requests: Sequence[generation_pb2.GenerateRequest],
        of_prompts: PromptOptions,
    ) -> None:
        """Initialize.

        Args:
            style: The form of the choices: chats or completions.
            request_id: The answer's id, without its prefix.
            model: The request's name for the model.
            server: The server that answers.
            num_completions: Completions of each prompt.
            return_token_ids: Whether each choice lists its token ids.
            stream_options: Whether a stream has token counts, at its end or in each chunk.
            requests: The request to the server, for each prompt.
            of_prompts: What to return of the prompts.
        """
        self._style = style
        self._head: Object = {
            "id": style.prefix + request_id,
            "object": style.chunk,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": server.fingerprint,
        }
        self._num_completions = num_completions
        self._return_token_ids = return_token_ids
        self._stream_options = stream_options
        self._requests = requests
        self._of_prompts = of_prompts
        self._echoes: dict[int, Echo] = {}
        """By prompt index, for prompts that had a chunk."""
        self._states: dict[int, ChoiceState] = {}
        """By choice index, for choices that had a chunk."""
        self._prompt_tokens: dict[int, int] = {}
        """Length of each prompt that had a chunk, by its index."""
        self._completion_tokens: Counter[int] = Counter()
        """Tokens of each choice so far, by its index."""

    def whole(self, responses: Sequence[generation_pb2.GenerateResponse]) -> Object:
        """See `ResponseFormatter`."""
        choices = []
        extra: Object = {}
        count = self._of_prompts.num_prompt_logprobs
        for place, response in enumerate(responses):
            if count is not None:
                extra = {"prompt_logprobs": prompt_logprobs(count, response.prompt_logprobs)}
            echo = echo_of(self._of_prompts, self._requests[place], response.prompt_logprobs)
            for completion in response.completions:
                choice = self._choice(
                    place, completion, self._style.message(completion, ChoiceState(echo))
                )
                choices.append(choice | extra if self._style.repeats_prompt else choice)
        answer = self._head | {
            "object": self._style.whole,
            "choices": choices,
            "usage": usage_of([response.usage for response in responses]),
        }
        return answer if self._style.repeats_prompt else answer | extra

    def is_long(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bool:
        """See `ResponseFormatter`."""
        echo = self._echoes.get(place)
        is_repeated = echo and self._index(place, response.delta) not in self._states
        positions = echo.positions if echo and is_repeated else response.prompt_logprobs
        return len(positions) >= MANY_POSITIONS

    def events(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bytes:
        """See `ResponseFormatter`."""
        delta = response.delta
        index = self._index(place, delta)
        if place not in self._echoes:
            prompt = response.prompt_logprobs
            self._echoes[place] = echo_of(self._of_prompts, self._requests[place], prompt)
            self._prompt_tokens[place] = response.prompt_tokens
        self._completion_tokens[index] += len(delta.token_ids)
        if index not in self._states:
            self._states[index] = ChoiceState(self._echoes[place])
        state = self._states[index]
        # For example if a token holds only the first bytes of a character.
        is_empty = not (
            delta.text
            or delta.reasoning
            or delta.tool_calls
            or delta.finish_reason
            or delta.logprobs
        )
        if is_empty and state.is_begun and not self._return_token_ids:
            return b""
        fields = self._style.delta(delta, state)
        state.is_begun = True
        state.num_calls += len(delta.tool_calls)
        choice = self._choice(place, delta, fields)
        return event(self._head | {"choices": [choice]} | self._usage_so_far(place, index))

    def end(self, usages: Sequence[generation_pb2.Usage]) -> bytes:
        """See `ResponseFormatter`."""
        counts = self._head | {"choices": [], "usage": usage_of(usages)}
        return (event(counts) if self._stream_options.include_usage else b"") + _DONE

    def failure(self, error: LoramuxError) -> bytes:
        """See `ResponseFormatter`."""
        return event(error_body(error))

    def _usage_so_far(self, place: int, index: int) -> Object:
        """Return the token counts in a chunk of the choice at `index`, if it has any."""
        if not (self._stream_options.include_usage and self._stream_options.continuous_usage_stats):
            return {}
        prompt, completion = self._prompt_tokens[place], self._completion_tokens[index]
        return {
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }
        }

    def _choice(self, place: int, completion: generation_pb2.Completion, fields: Object) -> Object:
        choice = {"index": self._index(place, completion)} | fields
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
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)
        },
    }


def adapter_header(identities: Sequence[generation_pb2.AdapterIdentity]) -> str:
    """Return references of the versions that answered; empty for the base model."""
    return ", ".join(
        f"{each.tenant}/{each.name}:{each.version}@{each.digest}" for each in identities
    )
