"""Converts the server's responses to Anthropic's messages and stream events."""

import hashlib
import time
from collections.abc import Callable, Sequence

import msgspec

from loramux.errors import LoramuxError
from loramux.gateway.anthropic.names import MessageNames
from loramux.gateway.anthropic.refusal import error_body
from loramux.gateway.events import event
from loramux.v1 import generation_pb2

Object = dict[str, object]

PING_SECONDS = 5.0
"""Time without an event, as while a tool call is generated, after which a ping is sent."""
_DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}
"""Type of a block -> type of its deltas."""


class Answer:
    """One answer, as one object or as events; a `ResponseFormatter`."""

    def __init__(
        self,
        request_id: str,
        model: str,
        *,
        stop_sequences: Sequence[str],
        shows_thoughts: bool,
        names: MessageNames,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Initialize.

        Args:
            request_id: Used in the message's id.
            model: The request's name for the model.
            stop_sequences: Those of the request; adapters may have more by default.
            shows_thoughts: Whether thinking blocks include their text.
            names: The names of fields in errors.
            clock: Seconds, for pings.
        """
        self._request_id = request_id
        self._stop_sequences = stop_sequences
        self._shows_thoughts = shows_thoughts
        self._names = names
        self._clock = clock
        self._head: Object = {
            "id": f"msg_{request_id}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self.is_shortened = False
        """Whether `max_tokens` was lowered to what the context leaves."""
        self._is_begun = False
        self._last_event = 0.0
        self._open: str | None = None
        """Type of the block that has begun and not ended."""
        self._num_blocks = 0
        self._thought = hashlib.sha256()
        self._stop: Object = {}

    def whole(self, responses: Sequence[generation_pb2.GenerateResponse]) -> Object:
        """See `ResponseFormatter`."""
        (response,) = responses
        (completion,) = response.completions
        content: list[Object] = []
        if completion.reasoning:
            self._thought.update(completion.reasoning.encode())
            thinking = completion.reasoning if self._shows_thoughts else ""
            content.append({"type": "thinking", "thinking": thinking, **self._signature()})
        if completion.text:
            content.append({"type": "text", "text": completion.text})
        content += [
            _call(call, msgspec.Raw(call.arguments.encode())) for call in completion.tool_calls
        ]
        stop = self._stop_of(completion)
        return self._head | {"content": content, **stop, "usage": usage_of(response.usage)}

    def is_long(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bool:
        """See `ResponseFormatter`."""
        return False

    def events(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bytes:
        """See `ResponseFormatter`."""
        delta = response.delta
        events = [] if self._is_begun else [self._start()]
        if delta.reasoning:
            events += self._add("thinking", delta.reasoning)
        if delta.text:
            events += self._add("text", delta.text)
        for call in delta.tool_calls:
            events += self._called(call)
        if delta.finish_reason:
            events += self._close()
            self._stop = self._stop_of(delta)
        now = self._clock()
        if not events and now - self._last_event >= PING_SECONDS:
            events = [_event("ping")]
        if events:
            self._last_event = now
        return b"".join(events)

    def end(self, usages: Sequence[generation_pb2.Usage]) -> bytes:
        """See `ResponseFormatter`."""
        (usage,) = usages
        last = _event("message_delta", delta=self._stop, usage=usage_of(usage))
        return last + _event("message_stop")

    def failure(self, error: LoramuxError) -> bytes:
        """See `ResponseFormatter`."""
        return event(error_body(error, self._request_id, self._names), "error")

    def _start(self) -> bytes:
        self._is_begun = True
        # The server reports usage with its last chunk, so only `message_delta` has it.
        message = self._head | {"content": [], **_NOT_STOPPED, "usage": usage_of(_NOTHING)}
        return _event("message_start", message=message)

    def _add(self, kind: str, text: str) -> list[bytes]:
        """Return the events that add `text` to a block of type `kind`."""
        events = []
        if self._open != kind:
            empty = {"signature": ""} if kind == "thinking" else {}
            events = [*self._close(), self._begin({"type": kind, kind: "", **empty})]
            self._open = kind
        if kind == "thinking":
            self._thought.update(text.encode())
        if kind == "text" or self._shows_thoughts:
            events.append(self._delta({"type": _DELTAS[kind], kind: text}))
        return events

    def _called(self, call: generation_pb2.ToolCall) -> list[bytes]:
        """Return the events of a call, which is complete."""
        events = [*self._close(), self._begin(_call(call, {}))]
        self._open = "tool_use"
        events.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        return events + self._close()

    def _begin(self, block: Object) -> bytes:
        return _event("content_block_start", index=self._num_blocks, content_block=block)

    def _delta(self, delta: Object) -> bytes:
        return _event("content_block_delta", index=self._num_blocks, delta=delta)

    def _close(self) -> list[bytes]:
        """Return the events that end the open block, if there is one."""
        if self._open is None:
            return []
        events = []
        if self._open == "thinking":
            events.append(self._delta({"type": "signature_delta", **self._signature()}))
        events.append(_event("content_block_stop", index=self._num_blocks))
        self._open = None
        self._num_blocks += 1
        return events

    def _signature(self) -> Object:
        """Return the reasoning's signature, which some clients require; it is never verified."""
        thought, self._thought = self._thought, hashlib.sha256()
        return {"signature": thought.hexdigest()}

    def _stop_of(self, completion: generation_pb2.Completion) -> Object:
        """Return `stop_reason` and `stop_sequence`."""
        if completion.finish_reason == generation_pb2.FINISH_REASON_LENGTH:
            reason = "model_context_window_exceeded" if self.is_shortened else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if completion.finish_reason == generation_pb2.FINISH_REASON_TOOL_CALLS:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if completion.stop_string in self._stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_string}
        return {"stop_reason": "end_turn", "stop_sequence": None}


_NOTHING = generation_pb2.Usage()
_NOT_STOPPED: Object = {"stop_reason": None, "stop_sequence": None}


def usage_of(usage: generation_pb2.Usage) -> Object:
    """Return Anthropic's usage, in which cached tokens are not part of `input_tokens`."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _call(call: generation_pb2.ToolCall, given: object) -> Object:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _event(kind: str, **fields: object) -> bytes:
    return event({"type": kind, **fields}, kind)
