"""Input items -> chat messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from loramux.gateway.body import ChatMessage
from loramux.gateway.kinds import of_kind
from loramux.gateway.refusal import check_one_of, invalid, unsupported
from loramux.gateway.responses.names import Source
from loramux.gateway.responses.parts import Part, parts_of
from loramux.gateway.tools import CalledFunction, ToolCall


class Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of output items, ignored when clients send them back."""

    id: object = None
    status: object = None


class MessageItem(Item, kw_only=True):
    """`message`."""

    role: str
    content: str | list[Part]
    phase: object = None
    """Commentary or final answer; ignored, since chat templates have no field for it."""


class CallItem(Item, kw_only=True):
    """`function_call`."""

    call_id: str
    name: str
    arguments: str
    namespace: object = None
    caller: object = None


class OutputItem(Item, kw_only=True):
    """`function_call_output`."""

    call_id: str
    output: str | list[Part]
    name: str = ""
    namespace: object = None
    caller: object = None


class ThoughtText(msgspec.Struct):
    """A part of `content` or `summary` of a reasoning item."""

    text: str
    type: str = ""


class ReasoningItem(Item, kw_only=True):
    """`reasoning`."""

    summary: list[ThoughtText] = []
    content: list[ThoughtText] = []
    encrypted_content: str = ""


_ROLES = ("user", "assistant", "system", "developer")
_KINDS: Mapping[str, type[Item]] = {
    "message": MessageItem, "function_call": CallItem, "function_call_output": OutputItem,
    "reasoning": ReasoningItem,
}  # fmt: skip


@dataclass(slots=True)
class Conversation:
    """A conversation under construction.

    Consecutive items of an assistant are merged into one message, as chat templates expect:
    reasoning, then text, then calls, and text after calls is appended to the text. A second text
    without calls between, or reasoning after text or calls, starts another message.
    """

    messages: list[ChatMessage] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    """One for each message."""
    thoughts: list[list[str]] = field(default_factory=list)
    """The reasoning of each message, joined by `end`: an input may have thousands of items, so no
    text or list is copied for each of them."""

    def begin(self, name: str, role: str, content: str | list[Part], of_content: str) -> None:
        """Add a message.

        Args:
            name: The item or field that it comes from.
            role: Its role.
            content: Its content.
            of_content: The field that holds the content.
        """
        self.messages.append(ChatMessage(role, content))
        self.sources.append(Source(name, of_content))
        self.thoughts.append([])

    def add(self, name: str, given: Mapping[str, object]) -> None:
        """Add `given`, the item at `name`.

        Raises:
            InvalidArgumentError: The item is not supported; the error names the field.
        """
        if given.get("type") is None and "role" in given:
            given = {**given, "type": "message"}
        if given.get("type") == "item_reference":
            raise unsupported(
                f"{name}.type",
                f"{name}.type is 'item_reference'; items are not stored: give the item itself",
            )
        item = of_kind(name, given, _KINDS)
        if isinstance(item, MessageItem):
            check_one_of(f"{name}.role", item.role, _ROLES)
        if isinstance(item, MessageItem) and item.role == "assistant":
            self._add_text(name, parts_of(f"{name}.content", item.content))
        elif isinstance(item, MessageItem):
            content = parts_of(f"{name}.content", item.content)
            self.begin(name, item.role, content, f"{name}.content")
        elif isinstance(item, OutputItem):
            output = parts_of(f"{name}.output", item.output)
            self.begin(name, "tool", output, f"{name}.output")
            self.messages[-1].tool_call_id = item.call_id
            self.messages[-1].name = item.name or None
        elif isinstance(item, CallItem):
            self._add_call(name, item)
        elif isinstance(item, ReasoningItem):
            self._add_reasoning(name, item)

    def end(self) -> None:
        """Complete the messages."""
        for message, thoughts in zip(self.messages, self.thoughts, strict=True):
            if thoughts:
                message.reasoning = "\n\n".join(thoughts)

    def _add_text(self, name: str, content: str | list[Part]) -> None:
        message, source = self._assistant_message(name)
        if message.content and not message.tool_calls:
            message, source = self._assistant_message(name, is_new=True)
        if message.content:  # text after calls
            message.content = _parts(message.content)
            message.content += _parts(content)
        else:
            message.content, source.content = content, f"{name}.content"

    def _add_call(self, name: str, item: CallItem) -> None:
        message, source = self._assistant_message(name)
        call = ToolCall(CalledFunction(item.name, item.arguments), item.call_id)
        if message.tool_calls is None:
            message.tool_calls = []
        message.tool_calls.append(call)
        source.calls.append(name)

    def _add_reasoning(self, name: str, item: ReasoningItem) -> None:
        if item.encrypted_content and not (item.content or item.summary):
            raise unsupported(
                f"{name}.encrypted_content",
                f"{name} has reasoning in encrypted_content only, which cannot be decrypted; give "
                "it as content, or leave the item out",
            )
        thought = "".join(part.text for part in item.content or item.summary)
        if not thought:
            return
        message, source = self._assistant_message(name)
        if message.content or message.tool_calls:
            message, source = self._assistant_message(name, is_new=True)
        self.thoughts[-1].append(thought)
        source.reasoning = source.reasoning or f"{name}.content"

    def _assistant_message(self, name: str, *, is_new: bool = False) -> tuple[ChatMessage, Source]:
        """Return the assistant message that the item `name` is merged into."""
        if is_new or not self.messages or self.messages[-1].role != "assistant":
            self.begin(name, "assistant", "", f"{name}.content")
        return self.messages[-1], self.sources[-1]


def conversation_of(instructions: str | None, given: str | list[dict[str, object]]) -> Conversation:
    """Return the conversation of `instructions` and `given`, the input.

    Raises:
        InvalidArgumentError: The input is empty, or an item is not supported.
    """
    conversation = Conversation()
    if instructions:
        conversation.begin("instructions", "system", instructions, "instructions")
    if isinstance(given, str):
        conversation.begin("input", "user", given, "input")
        return conversation
    if not given:
        raise invalid("input", "input is an empty list; give a text, or at least one item")
    for place, item in enumerate(given):
        conversation.add(f"input[{place}]", item)
    conversation.end()
    return conversation


def _parts(content: str | list[Part]) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
