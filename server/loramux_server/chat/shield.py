"""Contents of messages, marked so that no part of one can become a control token.

A message may hold `</s>` or `<|im_start|>system`, or a half of it that the next one ends. So every
character of a content with which a token of the tokenizer could begin is replaced, before the
template runs, by a character that stands for it and occurs nowhere else. What the template wrote
by itself is not replaced: tokens are looked for afterwards, and are the template's own.

A template may look for text of its own in a content, such as `</think>`. Where a content holds such
text, and other added tokens that say nothing of whose turn it is, it is not marked. Then a template
that takes text away could still join halves of a control token. So both are rendered, and if the
control tokens are not the same, what was rendered of contents marked throughout is taken.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from loramux_server.chat.messages import Piece, Setup, Turn

ASSISTANT = "assistant"
"""Whose turns the model wrote, its own tokens such as `<tool_call>` among them."""

_FIRST_MARK, _LAST_MARK = 0xF0000, 0x10FFFD
"""Private characters of Unicode. More of them than the contents of a request can hold."""

Write = Callable[[Sequence[Turn]], str]
"""Renders a template."""


class Shield:
    """Keeps contents apart from the control tokens of one template."""

    def __init__(self, setup: Setup, source: str, literals: Iterable[str]) -> None:
        """Prepare for a template.

        Args:
            setup: The tokens of the tokenizer.
            source: The template.
            literals: The strings in it.
        """
        named = [token for token in setup.added if token in source]
        self._control = frozenset(setup.control)
        self._named = frozenset(named)
        self._tokens = _any_of([*setup.control, *setup.added])
        self._first = sorted({token[0] for token in (*setup.control, *setup.added)})
        sought = {
            text for text in literals if len(text) > 1 and not set(text).isdisjoint(self._first)
        }
        self._never = _any_of(setup.control)
        self._not_in_others = _any_of([*setup.control, *named])
        self._kept = _any_of(
            [*setup.added, *(text for text in sought if not self._never.search(text))]
        )

    def pieces(self, turns: Sequence[Turn], write: Write) -> list[Piece]:
        """Return what `write` makes of `turns`, with its own tokens apart."""
        marks = self._marks(turns)
        if not any(char in turn.content for turn in turns for char in marks):
            return self._split(write(turns), {})
        back = {ord(mark): char for char, mark in marks.items()}
        marked = [self._marked(turn, marks) for turn in turns]
        spared = [self._marked(turn, marks, spares=True) for turn in turns]
        safe = self._split(write(marked), back)
        if marked == spared:
            return safe
        likely = self._split(write(spared), back)
        return likely if self._control_of(likely, turns) == self._control_of(safe, turns) else safe

    def _marks(self, turns: Sequence[Turn]) -> dict[str, str]:
        """Return what stands for each character with which a token could begin."""
        used = {ord(char) for turn in turns for char in turn.content if ord(char) >= _FIRST_MARK}
        free = (code for code in range(_FIRST_MARK, _LAST_MARK + 1) if code not in used)
        return {char: chr(code) for char, code in zip(self._first, free, strict=False)}

    def _marked(self, turn: Turn, marks: dict[str, str], *, spares: bool = False) -> Turn:
        content = turn.content
        spared: set[int] = set()
        if spares:
            refused = self._never if turn.role == ASSISTANT else self._not_in_others
            for found in self._kept.finditer(content):
                spared.update(i for i in range(*found.span()) if not refused.match(content, i))
        chars = (char if i in spared else marks.get(char, char) for i, char in enumerate(content))
        return Turn(turn.role, "".join(chars))

    def _split(self, text: str, back: dict[int, str]) -> list[Piece]:
        """Return `text` with its tokens apart, and what the marks stand for in place of them."""
        pieces: list[Piece] = []
        end = 0
        for found in self._tokens.finditer(text):
            if found.start() > end:
                pieces.append(Piece(text[end : found.start()].translate(back), False))
            pieces.append(Piece(found[0], True))
            end = found.end()
        if end < len(text):
            pieces.append(Piece(text[end:].translate(back), False))
        return pieces

    def _control_of(self, pieces: Iterable[Piece], turns: Iterable[Turn]) -> list[str]:
        """Return the tokens that say whose turn it is, in order."""
        compared = self._control
        # The model's own turns may hold others.
        own = [turn.content for turn in turns if turn.role == ASSISTANT]
        if not any(token in content for content in own for token in self._named):
            compared |= self._named
        return [piece.text for piece in pieces if piece.is_token and piece.text in compared]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of `texts`, the longest where several begin alike."""
    longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
