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
_MARKS = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")

Write = Callable[[Sequence[Turn]], str]
"""Renders a template."""


class Tokens:
    """The added tokens of a tokenizer, ready to be looked for."""

    def __init__(self, setup: Setup) -> None:
        self.control = frozenset(setup.control)
        self.others = frozenset(setup.added)
        self.any = _any_of([*setup.control, *setup.added])
        self.any_control = _any_of(setup.control)
        self.any_other = _any_of(setup.added)
        self.first = sorted({token[0] for token in (*setup.control, *setup.added)})
        """The characters with which a token could begin."""
        self.beginning = _any_of(self.first)


class Shield:
    """Keeps contents apart from the control tokens of one template."""

    def __init__(self, tokens: Tokens, source: str, literals: Iterable[str]) -> None:
        """Prepare for a template.

        Args:
            tokens: Those of the tokenizer.
            source: The template.
            literals: The strings in it.
        """
        self._tokens = tokens
        self._named = frozenset(token for token in tokens.others if token in source)
        self._any_named = _any_of(self._named)
        self._sought = _any_of(
            text
            for text in literals
            if len(text) > 1
            and not set(text).isdisjoint(tokens.first)
            and not tokens.any_control.search(text)
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
        used = {ord(char) for turn in turns for char in _MARKS.findall(turn.content)}
        free = (code for code in range(_FIRST_MARK, _LAST_MARK + 1) if code not in used)
        return {char: chr(code) for char, code in zip(self._tokens.first, free, strict=False)}

    def _marked(self, turn: Turn, marks: dict[str, str], *, spares: bool = False) -> Turn:
        content = turn.content
        spared = self._spared(turn) if spares else frozenset()
        return Turn(
            turn.role,
            self._tokens.beginning.sub(
                lambda found: found[0] if found.start() in spared else marks[found[0]], content
            ),
        )

    def _spared(self, turn: Turn) -> frozenset[int]:
        """Return which characters may begin what the template looks for, or a token like others."""
        refused = [self._tokens.any_control]
        if turn.role != ASSISTANT:
            refused.append(self._any_named)
        return frozenset(
            place
            for kept in (self._sought, self._tokens.any_other)
            for found in kept.finditer(turn.content)
            for place in range(*found.span())
            if not any(pattern.match(turn.content, place) for pattern in refused)
        )

    def _split(self, text: str, back: dict[int, str]) -> list[Piece]:
        """Return `text` with its tokens apart, and what the marks stand for in place of them."""
        pieces: list[Piece] = []
        end = 0
        for found in self._tokens.any.finditer(text):
            if found.start() > end:
                pieces.append(Piece(text[end : found.start()].translate(back), False))
            pieces.append(Piece(found[0], True))
            end = found.end()
        if end < len(text):
            pieces.append(Piece(text[end:].translate(back), False))
        return pieces

    def _control_of(self, pieces: Iterable[Piece], turns: Iterable[Turn]) -> list[str]:
        """Return the tokens that say whose turn it is, in order."""
        compared = self._tokens.control
        # The model's own turns may hold others.
        own = [turn.content for turn in turns if turn.role == ASSISTANT]
        if not any(token in content for content in own for token in self._named):
            compared |= self._named
        return [piece.text for piece in pieces if piece.is_token and piece.text in compared]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of `texts`, the longest where several begin alike."""
    longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
