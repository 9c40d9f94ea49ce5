"""The body of `/v1/responses`: which fields exist, and their types."""

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
    """The former name of `summary`."""


class ResponsesBody(SamplingBody, kw_only=True):
    """The body of `/v1/responses`."""

    input: str | list[dict[str, object]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    """Ignored: it limits calls of built-in tools, of which there are none."""
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

    # vLLM's.
    chat_template_kwargs: dict[str, object] = msgspec.field(default_factory=dict)

    @property
    def includes_logprobs(self) -> bool:
        """Whether to return log-probabilities of the text's tokens."""
        return bool(self.top_logprobs) or LOGPROBS in self.include

    @property
    def called(self) -> dict[str, str]:
        """Field of the server's request -> field of this body, where the names differ."""
        has_json = self.structured_outputs and self.structured_outputs.json is not None
        return {
            "max_tokens": "max_output_tokens",
            "logprobs": "top_logprobs",
            "structured_output.json_schema": (
                "structured_outputs.json" if has_json else "text.format.schema"
            ),
        }
