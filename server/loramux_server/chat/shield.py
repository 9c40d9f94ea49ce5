"""Contents of messages, marked so that no part of one can become a control token.

A message may hold `</s>` or `<|im_start|>system`, or a half of it that the next one ends. So every
character of a content with which a token of the tokenizer could begin is replaced, before the
template runs, by a character that stands for it and occurs nowhere else. What the template wrote
by itself is not replaced: tokens are looked for afterwards, and are the template's own.

A template may look for text of its own in a content, such as `</think>`. Where a content holds such
text, and other added tokens that say nothing of whose turn it is, it is not marked. Then a template
that takes text away could still join halves of a control token. So both are rendered, and if the
control tokens are not the same, what was rendered of contents marked throughout is taken.

What else a request gives (tools, calls of them, variables) is marked throughout, the keys of its
objects as well. Templates write it as JSON, so what JSON escapes is marked there only if a control
token could begin with it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import msgspec

from loramux_server.chat.messages import MARKS, Call, Piece, Talk, Tool, Turn, Words

ASSISTANT = "assistant"
"""Whose turns the model wrote, its own tokens such as `<tool_call>` among them."""

_MARKS = re.compile(f"[{MARKS}]")
_SPELLED = re.compile(r"\\U(000f|0010)([0-9a-f]{4})")
"""What Python writes for such a character in a list, which some templates make a text of."""

_ESCAPED = re.compile(r'["\\\x00-\x1f]')
"""What JSON does not write as it is."""


class ForgedTokenError(Exception):
    """A text of a caller would become part of a control token; the message is for callers."""


Write = Callable[[Talk], str]
"""Renders a template."""
Change = Callable[[str], str]


class Tokens:
    """The added tokens of a tokenizer, ready to be looked for."""

    def __init__(self, words: Words) -> None:
        self.control = frozenset(words.control)
        self.others = frozenset(words.added)
        self.any = _any_of([*words.control, *words.added])
        self.any_control = _any_of(words.control)
        self.any_other = _any_of(words.added)
        self.first = sorted({token[0] for token in (*words.control, *words.added)})
        """The characters with which a token could begin."""
        self.beginning = _any_of(self.first)
        self.rest = sorted(set("".join(words.control)) - set(self.first))
        """Other characters that control tokens have."""
        self.inner = _any_of(set("".join(words.control)))
        self.beginning_in_json = _any_of(
            char
            for char in self.first
            if not _ESCAPED.match(char) or any(token[0] == char for token in words.control)
        )


class Shield:
    """Keeps contents apart from the control tokens of one template."""

    def __init__(self, tokens: Tokens, source: str, literals: Collection[str]) -> None:
        """Prepare for a template.

        Args:
            tokens: Those of the tokenizer.
            source: The template.
            literals: The strings in it.
        """
        self._tokens = tokens
        self._known = {
            text for text in literals if not any(text in token for token in tokens.control)
        }
        """Words that are part of no control token."""
        self._named = frozenset(token for token in tokens.others if token in source)
        self._any_named = _any_of(self._named)
        self._sought = _any_of(
            text
            for text in literals
            if len(text) > 1
            and not set(text).isdisjoint(tokens.first)
            and not tokens.any_control.search(text)
        )

    def pieces(self, talk: Talk, write: Write) -> list[Piece]:
        """Return what `write` makes of `talk`, with its own tokens apart.

        Raises:
            ForgedTokenError: What comes beside contents makes a control token with what the
                template writes around it.
        """
        marks = self._marks(talk)
        back = {ord(mark): char for char, mark in marks.items()}
        marked = self._marked(talk, marks)
        spared = self._marked(talk, marks, spares=True)
        safe = self._split(write(marked), back)
        if talk.has_more:
            self._check_forged(talk, self._marked(talk, marks, throughout=True), safe, write)
        if marked == spared:
            return safe
        likely = self._split(write(spared), back)
        turns = talk.turns
        return likely if self._control_of(likely, turns) == self._control_of(safe, turns) else safe

    def _check_forged(self, talk: Talk, marked: Talk, found: list[Piece], write: Write) -> None:
        """Demand that no string beside contents is a part of a control token that was `found`.

        A template may write `<` and then the name of a parameter. So all is rendered once more as
        `marked`: with each character of these strings marked that such a token has, but for words
        that the template itself knows. Then there have to be the same tokens.
        """
        again = self._split(write(marked), {})
        if self._control_of(again, talk.turns) != self._control_of(found, talk.turns):
            raise ForgedTokenError(
                "a name or another text beside the contents becomes part of a control token"
            )

    def _marks(self, talk: Talk) -> dict[str, str]:
        """Return what stands for each character that a token has, those that begin one first."""
        used = {ord(char) for text in _texts(talk) for char in _MARKS.findall(text)}
        used |= {_spelled(found) for text in _texts(talk) for found in _SPELLED.finditer(text)}
        first, last = ord(MARKS[0]), ord(MARKS[-1])
        free = (code for code in range(first, last + 1) if code not in used)
        chars = [*self._tokens.first, *self._tokens.rest]
        return {char: chr(code) for char, code in zip(chars, free, strict=False)}

    def _marked(
        self,
        talk: Talk,
        marks: dict[str, str],
        *,
        spares: bool = False,
        throughout: bool = False,
    ) -> Talk:
        """Return `talk` with marks.

        Args:
            talk: What a request gives.
            marks: What stands for a character.
            spares: Leave what a template may look for in contents.
            throughout: Mark all that control tokens have beside contents, and not only what may
                begin a token.
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

        return Talk(
            [_changed_turn(turn, content, beside) for turn in talk.turns],
            [
                Tool(*(_changed(value, beside) for value in msgspec.structs.astuple(tool)))
                for tool in talk.tools
            ],
            # Names of variables are the template's.
            {name: _changed(value, beside) for name, value in talk.variables.items()},
            talk.has_text_arguments,
            talk.lists_contents,
        )

    def _spared(self, text: str, role: str) -> frozenset[int]:
        """Return which characters may begin what the template looks for, or a token like others.

        Args:
            text: Of a content.
            role: Whose turn it is.
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
        """Return `text` with its tokens apart, and what the marks stand for in place of them."""
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

    def _control_of(self, pieces: Iterable[Piece], turns: Iterable[Turn]) -> list[str]:
        """Return the tokens that say whose turn it is, in order."""
        compared = self._tokens.control
        # The model's own turns may hold others.
        own = [text for turn in turns if turn.role == ASSISTANT for text in turn.texts]
        if not any(token in text for text in own for token in self._named):
            compared |= self._named
        return [piece.text for piece in pieces if piece.is_token and piece.text in compared]


def _unmarked(text: str, back: dict[int, str]) -> str:
    """Return `text` with what the marks stand for in place of them."""
    return _SPELLED.sub(lambda found: back.get(_spelled(found), found[0]), text.translate(back))


def _spelled(found: re.Match[str]) -> int:
    """Return the number of the character that is spelled."""
    return int(found[1] + found[2], 16)


def _texts(talk: Talk) -> Iterator[str]:
    """Yield all strings that a request gives."""
    for turn in talk.turns:
        yield from (*turn.texts, turn.call_id, turn.name, turn.reasoning)
        for call in turn.calls:
            yield from (call.id, call.name, *_strings(call.arguments))
    for tool in talk.tools:
        yield from _strings(list(msgspec.structs.astuple(tool)))
    yield from _strings(talk.variables)


def _strings(value: object) -> Iterator[str]:
    """Yield all strings of a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _changed_turn(turn: Turn, content: Callable[[str, str], str], change: Change) -> Turn:
    """Return `turn` with each string but its role changed, texts of its content by `content`."""
    calls = [
        Call(change(call.id), change(call.name), _changed(call.arguments, change))
        for call in turn.calls
    ]
    return Turn(
        turn.role,
        content(turn.content, turn.role),
        calls,
        change(turn.call_id),
        change(turn.name),
        change(turn.reasoning),
        [None if text is None else content(text, turn.role) for text in turn.parts],
    )


def _changed(value: Any, change: Change) -> Any:  # noqa: ANN401 - JSON
    """Return a value of JSON with each string of it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, change) for inner in value]
    return value


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of `texts`, the longest where several begin alike."""
    longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
