"""What takes calls of tools out of a completion, whatever the way in which they are written."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loramux_server.tools.held import Held, UnfinishedError


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for."""

    id: str
    name: str
    arguments: str
    """An object of JSON, as text."""


class Read(NamedTuple):
    """What came of a piece."""

    text: str
    calls: Sequence[ToolCall]


class Reader(ABC):
    """Takes calls out of one completion.

    What does not turn out to be a call is text, as it was written. White space between text and
    calls is left out, and so is what begins, separates and ends calls.
    """

    def __init__(self, *, most: int | None) -> None:
        """Read at most `most` calls, or any number."""
        self._most = most
        self._held = Held()
        """Text of which it is not known yet what it is."""
        self.num_calls = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many calls as may be."""
        return self._most is not None and self.num_calls >= self._most

    def push(self, piece: str) -> Read:
        """Take what comes next, and return what is known by now."""
        self._held.text += piece
        text: list[str] = []
        calls: list[ToolCall] = []
        while self._held.text and not self.is_full:
            try:
                found = self._step()
            except UnfinishedError:
                given_up = self._given_up()
                if given_up is None:
                    break
                found = given_up
            if isinstance(found, ToolCall):
                self.num_calls += 1
                calls.append(found)
            else:
                text.append(found)
        return Read("".join(text), calls)

    def flush(self, *, is_ended: bool = True) -> Read:
        """Return what was held back, at the end of the completion.

        Args:
            is_ended: Whether the model ended it, and it was not cut off.
        """
        call = self._last_call() if is_ended and not self.is_full else None
        if call is not None:
            self.num_calls += 1
        held = self._held.taken(len(self._held.text))
        return Read("" if self._is_after_call else held, [call] if call else [])

    @abstractmethod
    def _step(self) -> ToolCall | str:
        """Return what the begin of what is held is: a call, or text, which may be empty.

        It is held no more then, or it is known what comes next.

        Raises:
            UnfinishedError: That is not known yet.
        """

    @property
    @abstractmethod
    def _is_after_call(self) -> bool:
        """Whether what is held may only be what follows a call."""

    def _given_up(self) -> str | None:
        """Return what is held as text, if it is too long to be something else; None to wait."""
        return None

    def _last_call(self) -> ToolCall | None:
        """Return the call that is held, if it lacks only what closes it at the end of a text."""
        return None
