"""From messages made of blocks to those that the client takes, and what errors call their parts."""

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
from loramux.gateway.refusal import check_one_of, invalid
from loramux.types import Image, Message, ToolCall

_BILLING = "x-anthropic-billing-header:"
"""What a line begins with that Claude Code puts before its instructions, for Anthropic's books. It
differs between requests, so nothing behind it would be found in the prefix cache."""
_BETWEEN = "\n\n"
"""What is put between two blocks of text."""
_FAILED = "Error: "
"""What is put before what came of a call that failed: templates have no other place for that."""


@dataclass(slots=True)
class Turn:
    """A message as the server takes it, while it is put together."""

    role: str
    name: str
    """What the request calls it."""
    parts: list[str | Image] = field(default_factory=list)
    part_names: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_names: list[str] = field(default_factory=list)
    reasoning: str = ""
    call_id: str = ""

    def add(self, name: str, part: str | Image) -> None:
        """Put `part`, which the request calls `name`, behind the others; a text to a text."""
        if isinstance(part, str) and self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] += _BETWEEN + part
        else:
            self.parts.append(part)
            self.part_names.append(name)

    @property
    def message(self) -> Message:
        """The message."""
        found: Message = {"role": self.role, "content": self.parts}
        if self.calls:
            found["tool_calls"] = self.calls
        if self.reasoning:
            found["reasoning"] = self.reasoning
        if self.call_id:
            found["tool_call_id"] = self.call_id
        return found


class Turns:
    """The messages of a request. Those of one role that follow one another are one."""

    def __init__(self, body: CountBody) -> None:
        """Take in the messages of `body`, and what it says to the model before.

        Raises:
            InvalidArgumentError: They are none; the error names the field.
        """
        if not body.messages:
            raise invalid("messages", "messages is an empty list; give at least one message")
        self._turns: list[Turn] = []
        self._waiting: list[tuple[str, str]] = []
        """Instructions that came behind an assistant's turn, with their names."""
        for name, text in _texts("system", body.system):
            self._put("system", name, text)
        for place, given in enumerate(body.messages):
            self._take(f"messages[{place}]", given)
        self._let_in()
        if self._turns[-1].role == "assistant":
            name = f"messages[{len(body.messages) - 1}].role"
            raise invalid(
                name,
                f"{name} is 'assistant'; expected 'user' in the last message: the beginning of an "
                "answer is not continued",
            )

    @property
    def messages(self) -> list[Message]:
        """What the server is given."""
        return [turn.message for turn in self._turns]

    @property
    def names(self) -> dict[str, str]:
        """Field of the server's request -> what has it in this one."""
        found = {}
        for number, turn in enumerate(self._turns):
            ours = f"messages[{number}]"
            found[ours] = turn.name
            # Of a user's own text, and a tool's, the server knows no more than that it is there.
            found[f"{ours}.content"] = (turn.part_names or [turn.name])[0]
            found |= {f"{ours}.parts[{i}].image": name for i, name in enumerate(turn.part_names)}
            found |= {f"{ours}.tool_calls[{i}]": name for i, name in enumerate(turn.call_names)}
            if turn.role == "tool":
                found[f"{ours}.tool_call_id"] = f"{turn.name}.tool_use_id"
        return found

    def _take(self, name: str, given: Given) -> None:
        check_one_of(f"{name}.role", given.role, ("user", "assistant", "system"))
        if given.role == "system":
            for part, text in _texts(f"{name}.content", given.content):
                self._instruct(part, text)
        elif given.role == "user":
            self._take_user(name, given.content)
        else:
            self._let_in()
            self._take_assistant(name, given.content)

    def _take_user(self, name: str, content: str | Sequence[dict[str, object]]) -> None:
        if content == []:
            raise invalid(
                f"{name}.content", f"{name}.content is an empty list; give at least one block"
            )
        for part, block in blocks_of(f"{name}.content", content, OF_USER):
            if isinstance(block, ToolResultBlock):
                self._turns.append(_result(part, block))
                continue
            self._let_in()
            self._put("user", part, _shown(part, block))
        self._let_in()

    def _take_assistant(self, name: str, content: str | Sequence[dict[str, object]]) -> None:
        turn = self._turn("assistant", name)
        for part, block in blocks_of(f"{name}.content", content, OF_ASSISTANT):
            if isinstance(block, TextBlock):
                turn.add(part, block.text)
            elif isinstance(block, ThinkingBlock):
                turn.reasoning = _BETWEEN.join(filter(None, (turn.reasoning, block.thinking)))
            elif isinstance(block, ToolUseBlock):
                arguments = msgspec.json.encode(block.input).decode()
                turn.calls.append(ToolCall(block.id, block.name, arguments))
                turn.call_names.append(part)

    def _instruct(self, name: str, text: str) -> None:
        """Take in instructions between messages, which few templates have a place for.

        They are part of the message before. Behind an assistant's they wait, so that what came of
        its calls follows these.
        """
        if self._turns and self._turns[-1].role == "assistant":
            self._waiting.append((name, text))
        elif self._turns:
            self._turns[-1].add(name, text)
        else:
            self._put("system", name, text)

    def _let_in(self) -> None:
        """Take in the instructions that wait."""
        waiting, self._waiting = self._waiting, []
        for name, text in waiting:
            role = self._turns[-1].role
            self._put("user" if role == "assistant" else role, name, text)

    def _put(self, role: str, name: str, part: str | Image) -> None:
        self._turn(role, name).add(name, part)

    def _turn(self, role: str, name: str) -> Turn:
        """Return the turn that goes on with `role`; a new one is called `name`."""
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(Turn(role, name))
        return self._turns[-1]


def _texts(name: str, content: str | Sequence[dict[str, object]]) -> Iterator[tuple[str, str]]:
    """Yield the texts of instructions, each with what it is called."""
    for part, block in blocks_of(name, content, OF_SYSTEM):
        assert isinstance(block, TextBlock)
        text = block.text
        if text.startswith(_BILLING):
            text = text.partition("\n")[2]
        if text:
            yield part, text


def _shown(name: str, block: Block) -> str | Image:
    """Return the text or image of the block that is called `name`."""
    if isinstance(block, ImageBlock):
        return image_of(name, block)
    assert isinstance(block, TextBlock)
    return block.text


def _result(name: str, block: ToolResultBlock) -> Turn:
    """Return the message of a tool, of the block that is called `name`."""
    turn = Turn("tool", name, call_id=block.tool_use_id)
    for part, each in blocks_of(f"{name}.content", block.content or "", OF_RESULT):
        turn.add(part, _shown(part, each))
    if block.is_error:
        turn.parts.insert(0, _FAILED)
        turn.part_names.insert(0, name)
    return turn
