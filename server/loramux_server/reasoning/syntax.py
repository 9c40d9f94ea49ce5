"""How a chat template marks reasoning, derived from a conversation that it renders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loramux_server.chat.messages import Conversation, Message, Piece

THOUGHT, ANSWER = "¤ thought", "§ here"
THINKING = Conversation(
    [Message("user", "Where?"), Message("assistant", ANSWER, reasoning=THOUGHT)]
)
_COMMON = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))
"""Markers to look for in templates that drop the reasoning of past messages."""
_MAX_MARK = 64
MAX_OPENING = 96
"""Tokens at the end of a prompt that are searched for an opened reasoning block."""


@dataclass(frozen=True, slots=True)
class ReasoningSyntax:
    """The markers before and after reasoning."""

    opening: str
    closing: str
    ids: Mapping[str, int]
    """Ids of those markers that are added tokens."""

    def is_open(self, prompt: str) -> bool:
        """Return whether `prompt`, or its end, leaves a reasoning block open."""
        return prompt.rfind(self.opening) > prompt.rfind(self.closing)


def reasoning_syntax_of(
    thinking: Sequence[Piece] | None, template: str, ids: Mapping[str, int]
) -> ReasoningSyntax | None:
    """Return how a template marks reasoning; None if it does not.

    Args:
        thinking: `THINKING` as rendered by it; None if it rejects that conversation.
        template: Its source.
        ids: The tokenizer's added tokens.
    """
    marks = _around(thinking or [])
    if marks is None:
        marks = next((pair for pair in _COMMON if pair[1] in template), None)
    if marks is None:
        return None
    return ReasoningSyntax(*marks, {mark: ids[mark] for mark in marks if mark in ids})


def _around(pieces: Sequence[Piece]) -> tuple[str, str] | None:
    """Return the tokens or words around the reasoning; None if it is left out or not marked."""
    place = next((i for i, piece in enumerate(pieces) if THOUGHT in piece.text), None)
    if place is None:
        return None
    before, _, after = pieces[place].text.partition(THOUGHT)
    opening = [*_words(pieces[:place]), *before.split()][-1:]
    closing = [*after.split(), *_words(pieces[place + 1 :])][:1]
    if not opening or not closing or opening == closing:
        return None
    marks = opening[0], closing[0]
    return marks if max(map(len, marks)) <= _MAX_MARK else None


def _words(pieces: Sequence[Piece]) -> Iterator[str]:
    for piece in pieces:
        yield from [piece.text] if piece.is_token else piece.text.split()
