"""Request bodies: which fields exist, and their types.

Values of enumerations are checked where they are used, all others by the server.
"""

import msgspec

from loramux.gateway.body import Priority, WeightedAdapter
from loramux.gateway.parsing import UnsupportedFields

UNSUPPORTED = UnsupportedFields(
    harmless=frozenset({"cache_control", "diagnostics", "service_tier"}),
    accepted={
        "container": (),
        "context_management": (
            {"edits": []},
            {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        ),
        "inference_geo": (),
        "mcp_servers": ([],),
        "speed": ("standard",),
    },
)
"""`cache_control` is ignored: prefix caching needs no hints."""


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model thinks before it answers."""

    type: str
    budget_tokens: int | None = None
    """Ignored: `max_tokens` limits reasoning and text together."""
    display: str | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model calls tools, and which."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Format(msgspec.Struct, forbid_unknown_fields=True):
    """Structured output."""

    type: str
    schema: dict[str, object]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How the model answers."""

    effort: str | None = None
    format: Format | None = None


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    """Metadata of the request."""

    user_id: str | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message."""

    role: str
    content: str | list[dict[str, object]]


class CountBody(msgspec.Struct, kw_only=True):
    """The body of `/v1/messages/count_tokens`: what the prompt is made of."""

    model: str
    messages: list[Message]
    system: str | list[dict[str, object]] = ""
    tools: list[dict[str, object]] = []
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    """The former name of `output_config.format`."""

    # loramux's own, as in chats.
    adapters: list[WeightedAdapter] | None = None
    combination: str | None = None
    chat_template_kwargs: dict[str, object] | None = None
    timeout: float | None = None


class MessagesBody(CountBody, kw_only=True):
    """The body of `/v1/messages`."""

    max_tokens: int
    stream: bool = False
    stop_sequences: list[str] = []
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None

    # loramux's own, as in chats.
    seed: int | None = None
    priority: Priority = 0
