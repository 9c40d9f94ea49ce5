"""Marks the contents of messages, so that no part of one can become a control token.

A message may contain `</s>` or `<|im_start|>system`, or half of it, with the rest in the next
message. So before the template runs, every character of a content with which an added token could
begin is replaced by a mark: a private-use character that stands for it and occurs nowhere else in
the request. Tokens that are found in the output are then the template's own; the marks are replaced
by their characters afterwards.

A template may search a content for text such as `</think>`. In a second rendering, such text is not
marked, and neither are added tokens that do not delimit turns. There a template that removes text
could still join halves of a control token. So if the control tokens of the two renderings differ,
the fully marked one is used.

Everything else in a request (tools, tool calls, variables) is always marked, including the keys of
objects. Templates write it as JSON, so characters that JSON escapes are marked there only if a
control token could begin with them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import msgspec

from loramux_server.chat.messages import (
    MARKS,
    Call,
    Conversation,
    Message,
    Piece,
    Tool,
)
from loramux_server.chat.token_patterns import Tokens, any_of

ASSISTANT = "assistant"
"""The role of messages that the model wrote, which may contain its tokens such as `<tool_call>`."""

_MARKS = re.compile(f"[{MARKS}]")
_SPELLED = re.compile(r"\\U(000f|0010)([0-9a-f]{4})")
"""A mark as Python's repr of a list escapes it; some templates convert a list to text."""


class ForgedTokenError(Exception):
    """Text of a caller would become part of a control token; the message is for callers."""


Write = Callable[[Conversation], str]
"""Renders a template."""
Change = Callable[[str], str]


class Shield:
    """Keeps contents of messages apart from the tokens that one template writes."""

    def __init__(self, tokens: Tokens, source: str, literals: Collection[str]) -> None:
        """Prepare for a template.

        Args:
            tokens: The tokenizer's added tokens.
            source: The template.
            literals: The strings in the template.
        """
        self._tokens = tokens
        self._known = {
            text for text in literals if not any(text in token for token in tokens.control)
        }
        """Literals of the template that are part of no control token."""
        self._named = frozenset(token for token in tokens.others if token in source)
        self._any_named = any_of(self._named)
        self._sought = any_of(
            text
            for text in literals
            if len(text) > 1
            and not set(text).isdisjoint(tokens.first)
            and not tokens.any_control.search(text)
        )

    def pieces(self, conversation: Conversation, write: Write) -> list[Piece]:
        """Return `conversation` as rendered by `write`: text, and the template's own tokens.

        Raises:
            ForgedTokenError: A string outside the contents forms a control token together with what
                the template writes around it.
        """
        marks = self._marks(conversation)
        back = {ord(mark): char for char, mark in marks.items()}
        marked = self._marked(conversation, marks)
        spared = self._marked(conversation, marks, spares=True)
        safe = self._split(write(marked), back)
        if conversation.has_more:
            self._check_forged(
                conversation, self._marked(conversation, marks, throughout=True), safe, write
            )
        if marked == spared:
            return safe
        likely = self._split(write(spared), back)
        messages = conversation.messages
        return (
            likely
            if self._control_of(likely, messages) == self._control_of(safe, messages)
            else safe
        )

    def _check_forged(
        self, conversation: Conversation, marked: Conversation, found: list[Piece], write: Write
    ) -> None:
        """Demand that no string outside the contents is part of a control token in `found`.

        A template may write `<` and then the name of a parameter. So the conversation is rendered
        once more as `marked`: there, in strings other than literals of the template, every
        character that occurs in a control token is marked. The control tokens have to be the same.
        """
        again = self._split(write(marked), {})
        if self._control_of(again, conversation.messages) != self._control_of(
            found, conversation.messages
        ):
            raise ForgedTokenError(
                "text outside the contents, such as a name, becomes part of a control token"
            )

    def _marks(self, conversation: Conversation) -> dict[str, str]:
        """Return the mark of each character that may be replaced; first characters come first."""
        used = {ord(char) for text in _texts(conversation) for char in _MARKS.findall(text)}
        used |= {
            _spelled(found) for text in _texts(conversation) for found in _SPELLED.finditer(text)
        }
        first, last = ord(MARKS[0]), ord(MARKS[-1])
        free = (code for code in range(first, last + 1) if code not in used)
        chars = [*self._tokens.first, *self._tokens.rest]
        return {char: chr(code) for char, code in zip(chars, free, strict=False)}

    def _marked(
        self,
        conversation: Conversation,
        marks: dict[str, str],
        *,
        spares: bool = False,
        throughout: bool = False,
    ) -> Conversation:
        """Return `conversation` with characters replaced by marks.

        Args:
            conversation: The conversation.
            marks: Character -> its mark.
            spares: Do not mark text in contents that the template may search for.
            throughout: Outside the contents, mark every character of control tokens, not only those
                that may begin a token.
        """

        def beside(text: str) -> str:
            pattern = self._tokens.beginning_in_json
            if throughout and text not in self._known:
                pattern = self._tokens.inner
            return pattern.sub(lambda found: marks[found[0]], text)

        def content(text: str, role: str) -> str:
            spared = self._spared(text, role) if spares else frozenset()
            return self._tokens.beginning.sub(
                lambda found: found[0] if found.start() in spared else marks[found[0]], text
            )

        return Conversation(
            [_changed_message(message, content, beside) for message in conversation.messages],
            [
                Tool(*(_changed(value, beside) for value in msgspec.structs.astuple(tool)))
                for tool in conversation.tools
            ],
            # Names of variables are not marked: the template refers to them.
            {name: _changed(value, beside) for name, value in conversation.variables.items()},
            conversation.has_text_arguments,
            conversation.lists_contents,
        )

    def _spared(self, text: str, role: str) -> frozenset[int]:
        """Return the positions that need no mark.

        They lie in text that the template may search for, or in a token that is no control token,
        and begin no control token; unless the model wrote the message, no token named in the
        template either.

        Args:
            text: Text of a content.
            role: The role of its message.
        """
        refused = [self._tokens.any_control]
        if role != ASSISTANT:
            refused.append(self._any_named)
        return frozenset(
            place
            for kept in (self._sought, self._tokens.any_other)
            for found in kept.finditer(text)
            for place in range(*found.span())
            if not any(pattern.match(text, place) for pattern in refused)
        )

    def _split(self, text: str, back: dict[int, str]) -> list[Piece]:
        """Return `text` split at its added tokens, with marks replaced according to `back`."""
        pieces: list[Piece] = []
        end = 0
        for found in self._tokens.any.finditer(text):
            if found.start() > end:
                pieces.append(Piece(_unmarked(text[end : found.start()], back), False))
            pieces.append(Piece(found[0], True))
            end = found.end()
        if end < len(text):
            pieces.append(Piece(_unmarked(text[end:], back), False))
        return pieces

    def _control_of(self, pieces: Iterable[Piece], messages: Iterable[Message]) -> list[str]:
        """Return the control tokens in order, with those named in the template if comparable."""
        compared = self._tokens.control
        # Messages of the model may contain the latter as text.
        own = [text for message in messages if message.role == ASSISTANT for text in message.texts]
        if not any(token in text for text in own for token in self._named):
            compared |= self._named
        return [piece.text for piece in pieces if piece.is_token and piece.text in compared]


def _unmarked(text: str, back: dict[int, str]) -> str:
    """Return `text` with each mark, also an escaped one, replaced by its character."""
    return _SPELLED.sub(lambda found: back.get(_spelled(found), found[0]), text.translate(back))


def _spelled(found: re.Match[str]) -> int:
    """Return the code point of an escaped mark."""
    return int(found[1] + found[2], 16)


def _texts(conversation: Conversation) -> Iterator[str]:
    """Yield all strings of a conversation but the roles."""
    for message in conversation.messages:
        yield from (*message.texts, message.call_id, message.name, message.reasoning)
        for call in message.calls:
            yield from (call.id, call.name, *_strings(call.arguments))
    for tool in conversation.tools:
        yield from _strings(list(msgspec.structs.astuple(tool)))
    yield from _strings(conversation.variables)


def _strings(value: object) -> Iterator[str]:
    """Yield all strings of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _changed_message(
    message: Message, content: Callable[[str, str], str], change: Change
) -> Message:
    """Return `message` with its content mapped by `content`, and other strings by `change`."""
    calls = [
        Call(change(call.id), change(call.name), _changed(call.arguments, change))
        for call in message.calls
    ]
    return Message(
        message.role,
        content(message.content, message.role),
        calls,
        change(message.call_id),
        change(message.name),
        change(message.reasoning),
        [None if text is None else content(text, message.role) for text in message.parts],
    )


def _changed(value: Any, change: Change) -> Any:  # noqa: ANN401 - JSON
    """Return a JSON value with each of its strings, keys included, mapped by `change`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, change) for inner in value]
    return value
