"""The body of `/v1/responses`: which fields there are, and of what type."""

import msgspec

from loramux.gateway.body import SamplingBody, StreamOptions

LOGPROBS = "message.output_text.logprobs"


class TextOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The format of the text."""

    format: dict[str, object] = msgspec.field(default_factory=lambda: {"type": "text"})
    verbosity: str | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    """Options of reasoning."""

    effort: str | None = None
    summary: str | None = None
    """Accepted without effect: the reasoning itself is returned."""
    generate_summary: str | None = None
    """What `summary` was called before."""


class ResponsesBody(SamplingBody, kw_only=True):
    """The body of `/v1/responses`."""

    input: str | list[dict[str, object]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    """Limits calls of built-in tools, of which there are none."""
    text: TextOptions = msgspec.field(default_factory=TextOptions)
    reasoning: Reasoning | None = None
    tools: list[dict[str, object]] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, object] = "auto"
    parallel_tool_calls: bool = True
    include: list[str] = msgspec.field(default_factory=list)
    top_logprobs: int | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    stream_options: StreamOptions | None = None
    truncation: str = "disabled"

    # These need a server with state.
    background: bool = False
    conversation: object = None
    previous_response_id: object = None
    prompt: object = None

    # As vLLM calls it.
    chat_template_kwargs: dict[str, object] = msgspec.field(default_factory=dict)

    @property
    def tells_logprobs(self) -> bool:
        """Whether the text comes with log-probabilities of its tokens."""
        return bool(self.top_logprobs) or LOGPROBS in self.include

    @property
    def called(self) -> dict[str, str]:
        """Field of the server -> field of this API, where they differ."""
        has_json = self.structured_outputs and self.structured_outputs.json is not None
        return {
            "max_tokens": "max_output_tokens",
            "logprobs": "top_logprobs",
            "structured_output.json_schema": (
                "structured_outputs.json" if has_json else "text.format.schema"
            ),
        }
