"""Converts messages with content blocks to the client's, and records where each part came from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from loramux.gateway.anthropic.blocks import (
    OF_ASSISTANT,
    OF_RESULT,
    OF_SYSTEM,
    OF_USER,
    Block,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    blocks_of,
    image_of,
)
from loramux.gateway.anthropic.body import CountBody
from loramux.gateway.anthropic.body import Message as Given
from loramux.gateway.anthropic.names import Source
from loramux.gateway.refusal import check_one_of, invalid
from loramux.types import Image, Message, ToolCall

_BILLING = "x-anthropic-billing-header:"
"""Begins Claude Code's system prompt: a line for Anthropic's accounting. It differs between
requests, so everything after it would miss the prefix cache."""
_BETWEEN = "\n\n"
"""Separates two blocks of text."""
_FAILED = "Error: "
"""Prefix of a failed call's result, since templates have no field for that."""


@dataclass(slots=True)
class MergedMessage:
    """A message for the server, under construction."""

    role: str
    name: str
    """The field of the request that it comes from; likewise in `part_names` and `call_names`."""
    parts: list[list[str] | Image] = field(default_factory=list)
    """A text part is a list of texts, joined only at the end, as there may be thousands."""
    part_names: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_names: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    call_id: str = ""

    def add(self, name: str, part: str | Image) -> None:
        """Append `part`, which comes from the field `name`; adjacent texts become one part."""
        last = self.parts[-1] if self.parts else None
        if isinstance(part, str) and isinstance(last, list):
            last.append(part)
        else:
            self.parts.append([part] if isinstance(part, str) else part)
            self.part_names.append(name)

    @property
    def message(self) -> Message:
        """The message."""
        found: Message = {
            "role": self.role,
            "content": [_joined(part) if isinstance(part, list) else part for part in self.parts],
        }
        if self.calls:
            found["tool_calls"] = self.calls
        if thought := _joined(self.thoughts):
            found["reasoning"] = thought
        if self.call_id:
            found["tool_call_id"] = self.call_id
        return found


class MergedMessages:
    """The messages of a request. Consecutive messages of one role are merged."""

    def __init__(self, body: CountBody) -> None:
        """Convert `system` and `messages` of `body`.

        Raises:
            InvalidArgumentError: They are malformed or unsupported; the error names the field.
        """
        if not body.messages:
            raise invalid("messages", "messages is an empty list; give at least one message")
        self._merged: list[MergedMessage] = []
        self._waiting: list[tuple[str, str]] = []
        """System messages held back after an assistant's turn: field and text."""
        for name, text in _texts("system", body.system):
            self._put("system", name, text)
        for place, given in enumerate(body.messages):
            self._take(f"messages[{place}]", given)
        self._flush()
        if self._merged[-1].role == "assistant":
            name = f"messages[{len(body.messages) - 1}].role"
            raise invalid(
                name,
                f"{name} is 'assistant'; expected 'user' in the last message: prefilled answers "
                "are not supported",
            )

    @property
    def messages(self) -> list[Message]:
        """The messages for the server."""
        return [merged.message for merged in self._merged]

    @property
    def sources(self) -> list[Source]:
        """The fields that each of `messages` was made from, for errors."""
        return [
            Source(merged.name, merged.role == "tool", merged.part_names, merged.call_names)
            for merged in self._merged
        ]

    def _take(self, name: str, given: Given) -> None:
        check_one_of(f"{name}.role", given.role, ("user", "assistant", "system"))
        if given.role == "system":
            for part, text in _texts(f"{name}.content", given.content):
                self._instruct(part, text)
        elif given.role == "user":
            self._take_user(name, given.content)
        else:
            self._flush()
            self._take_assistant(name, given.content)

    def _take_user(self, name: str, content: str | Sequence[dict[str, object]]) -> None:
        if content == []:
            raise invalid(
                f"{name}.content", f"{name}.content is an empty list; give at least one block"
            )
        for part, block in blocks_of(f"{name}.content", content, OF_USER):
            if isinstance(block, ToolResultBlock):
                self._merged.append(_result(part, block))
                continue
            self._flush()
            self._put("user", part, _part(part, block))
        self._flush()

    def _take_assistant(self, name: str, content: str | Sequence[dict[str, object]]) -> None:
        merged = self._merged_message("assistant", name)
        for part, block in blocks_of(f"{name}.content", content, OF_ASSISTANT):
            if isinstance(block, TextBlock):
                merged.add(part, block.text)
            elif isinstance(block, ThinkingBlock):
                merged.thoughts.append(block.thinking)
            elif isinstance(block, ToolUseBlock):
                arguments = msgspec.json.encode(block.input).decode()
                merged.calls.append(ToolCall(block.id, block.name, arguments))
                merged.call_names.append(part)

    def _instruct(self, name: str, text: str) -> None:
        """Add a system message from the conversation, where few templates accept one.

        It becomes part of the message before it. After an assistant's turn it is held back, so that
        tool results directly follow their calls.
        """
        if self._merged and self._merged[-1].role == "assistant":
            self._waiting.append((name, text))
        elif self._merged:
            self._merged[-1].add(name, text)
        else:
            self._put("system", name, text)

    def _flush(self) -> None:
        """Add the system messages that were held back."""
        waiting, self._waiting = self._waiting, []
        for name, text in waiting:
            role = self._merged[-1].role
            self._put("user" if role == "assistant" else role, name, text)

    def _put(self, role: str, name: str, part: str | Image) -> None:
        self._merged_message(role, name).add(name, part)

    def _merged_message(self, role: str, name: str) -> MergedMessage:
        """Return the last turn if it has that `role`, or else a new one that comes from `name`."""
        if not self._merged or self._merged[-1].role != role:
            self._merged.append(MergedMessage(role, name))
        return self._merged[-1]


def _joined(texts: Sequence[str]) -> str:
    return _BETWEEN.join(filter(None, texts))


def _texts(name: str, content: str | Sequence[dict[str, object]]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a system message, each with its field."""
    for part, block in blocks_of(name, content, OF_SYSTEM):
        assert isinstance(block, TextBlock)
        text = block.text
        if text.startswith(_BILLING):
            text = text.partition("\n")[2]
        if text:
            yield part, text


def _part(name: str, block: Block) -> str | Image:
    """Return the text or image of the block in the field `name`."""
    if isinstance(block, ImageBlock):
        return image_of(name, block)
    assert isinstance(block, TextBlock)
    return block.text


def _result(name: str, block: ToolResultBlock) -> MergedMessage:
    """Return the tool message for the block in the field `name`."""
    merged = MergedMessage("tool", name, call_id=block.tool_use_id)
    for part, each in blocks_of(f"{name}.content", block.content or "", OF_RESULT):
        merged.add(part, _part(part, each))
    if block.is_error:
        merged.parts.insert(0, [_FAILED])
        merged.part_names.insert(0, name)
    return merged
