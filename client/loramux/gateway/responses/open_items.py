"""Output items, in progress and complete."""

import secrets
from collections.abc import Sequence
from typing import Protocol

from loramux.gateway.styles import Object
from loramux.v1 import generation_pb2


class OpenItem(Protocol):
    """An item in progress that has one content part."""

    id: str
    kind: str
    """The type of the part; events are named after it."""

    def add(self, text: str, logprobs: Sequence[Object]) -> Object:
        """Append `text`; return the fields of the delta event."""

    def part(self) -> Object:
        """Return the part in its current state."""

    def whole(self) -> Object:
        """Return the fields of the done event."""

    def item(self, status: str, parts: Sequence[Object]) -> Object:
        """Return the item with `parts` as its content."""


class Message:
    """A message of the assistant."""

    kind = "output_text"

    def __init__(self) -> None:
        self.id = new_id("msg")
        self._texts: list[str] = []
        self._logprobs: list[Object] = []

    def add(self, text: str, logprobs: Sequence[Object]) -> Object:
        """See `OpenItem`."""
        self._texts.append(text)
        self._logprobs += logprobs
        return {"delta": text, "logprobs": logprobs}

    def part(self) -> Object:
        """See `OpenItem`."""
        return {"type": self.kind, "annotations": []} | self.whole()

    def whole(self) -> Object:
        """See `OpenItem`."""
        return {"text": "".join(self._texts), "logprobs": list(self._logprobs)}

    def item(self, status: str, parts: Sequence[Object]) -> Object:
        """See `OpenItem`."""
        return {
            "id": self.id, "type": "message", "role": "assistant", "status": status,
            "content": parts,
        }  # fmt: skip


class Thought:
    """Reasoning."""

    kind = "reasoning_text"

    def __init__(self) -> None:
        self.id = new_id("rs")
        self._texts: list[str] = []

    def add(self, text: str, logprobs: Sequence[Object]) -> Object:
        """See `OpenItem`."""
        self._texts.append(text)
        return {"delta": text}

    def part(self) -> Object:
        """See `OpenItem`."""
        return {"type": self.kind} | self.whole()

    def whole(self) -> Object:
        """See `OpenItem`."""
        return {"text": "".join(self._texts)}

    def item(self, status: str, parts: Sequence[Object]) -> Object:
        """See `OpenItem`."""
        return {
            "id": self.id, "type": "reasoning", "summary": [], "status": status, "content": parts,
        }  # fmt: skip


def call_item(call: generation_pb2.ToolCall) -> Object:
    """Return the item of a complete call."""
    return {
        "id": new_id("fc"), "type": "function_call", "status": "completed", "call_id": call.id,
        "name": call.name, "arguments": call.arguments,
    }  # fmt: skip


def new_id(prefix: str) -> str:
    """Return a random id."""
    return f"{prefix}_{secrets.token_hex(12)}"
