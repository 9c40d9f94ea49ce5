"""The response object."""

import time
from dataclasses import dataclass, field

import msgspec

from loramux.gateway.responses.body import ResponsesBody
from loramux.gateway.responses.output import Output
from loramux.gateway.styles import Object
from loramux.v1 import generation_pb2


@dataclass(slots=True)
class Response:
    """A response in progress."""

    body: ResponsesBody
    """The request."""
    request_id: str
    """Its id, without the prefix."""
    output: Output = field(default_factory=Output)
    usage: generation_pb2.Usage | None = None
    """Known at the end."""
    _sampling: generation_pb2.SamplingParams | None = None
    _created: int = field(default_factory=lambda: int(time.time()))

    def begin(self, sampling: generation_pb2.SamplingParams) -> None:
        """Record the sampling parameters in use, which include the adapter's defaults."""
        self._sampling = sampling

    def object(self, status: str, output: list[Object], error: Object | None = None) -> Object:
        """Return OpenAI's response object.

        Args:
            status: in_progress, completed, incomplete or failed.
            output: Its items.
            error: Code and message of a failure.
        """
        body, cut_off = self.body, {"reason": "max_output_tokens"}
        return {
            "id": f"resp_{self.request_id}",
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": cut_off if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": msgspec.to_builtins(body.reasoning) if body.reasoning else None,
            "service_tier": "default",
            "store": False,
            "temperature": self._used("temperature"),
            "text": msgspec.to_builtins(body.text),
            "tool_choice": body.tool_choice,
            "tools": [{"strict": None, "parameters": None} | tool for tool in body.tools],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self._used("top_p"),
            "truncation": "disabled",
            "usage": _usage(self.usage) if self.usage else None,
            "user": body.user or None,
        }

    def ended(self) -> Object:
        """Return the final response object, after the last chunk."""
        return self.object(
            "incomplete" if self.output.is_cut_off else "completed", self.output.items
        )

    def _used(self, name: str) -> float | None:
        given: float | None = getattr(self.body, name)
        if given is not None or self._sampling is None:
            return given
        used: float = getattr(self._sampling, name)
        return round(used, 6)  # a float32


def _usage(usage: generation_pb2.Usage) -> Object:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
