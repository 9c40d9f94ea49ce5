"""Separating reasoning from the answer while a completion streams."""

import enum
from typing import NamedTuple

from loramux_server.reasoning.syntax import ReasoningSyntax
from loramux_server.text.stop_strings import overlap


class Thought(NamedTuple):
    """The reasoning and the answer text released by one `push` or `flush`."""

    reasoning: str
    text: str


class _State(enum.Enum):
    """The state of the reader: what is being read."""

    BEGIN = enum.auto()
    """White space, or the opening marker."""
    THOUGHT = enum.auto()
    AFTER = enum.auto()
    """White space after the reasoning."""
    TEXT = enum.auto()


class ReasoningReader:
    """Separates reasoning from the start of one completion, and removes its markers."""

    def __init__(self, syntax: ReasoningSyntax, *, is_open: bool) -> None:
        """Start a completion.

        Args:
            syntax: How reasoning is marked.
            is_open: Whether the prompt has opened it.
        """
        self._opening = syntax.opening
        self._closing = syntax.closing
        self._state = _State.THOUGHT if is_open else _State.BEGIN
        self._held = ""
        """What may be part of a marker, and white space that may precede one."""
        self._has_thought = False

    def push(self, piece: str) -> Thought:
        """Add the next piece of text, and return what can be classified by now."""
        piece, self._held = self._held + piece, ""
        reasoning = ""
        if self._state is _State.BEGIN:
            begun = piece.lstrip()
            if begun.startswith(self._opening):
                piece = begun[len(self._opening) :]
                self._state = _State.THOUGHT
            elif self._opening.startswith(begun):
                self._held = piece
                return Thought("", "")
            else:
                self._state = _State.TEXT
        if self._state is _State.THOUGHT:
            end = piece.find(self._closing)
            if end < 0:
                return Thought(self._thought(piece), "")
            reasoning = piece[:end].rstrip() if self._has_thought else piece[:end].strip()
            piece = piece[end + len(self._closing) :]
            self._state = _State.AFTER
        if self._state is _State.AFTER:
            piece = piece.lstrip()
            if piece:
                self._state = _State.TEXT
        return Thought(reasoning, piece)

    def flush(self) -> Thought:
        """Return the text that was held back, at the end of the completion."""
        held, self._held = self._held, ""
        return Thought(held.rstrip(), "") if self._state is _State.THOUGHT else Thought("", held)

    def _thought(self, text: str) -> str:
        """Return the part of `text` that is certainly reasoning, and hold back the rest."""
        if not self._has_thought:
            text = text.lstrip()
        known = text[: len(text) - overlap(self._closing, text)].rstrip()
        self._has_thought |= bool(known)
        self._held = text[len(known) :]
        return known
