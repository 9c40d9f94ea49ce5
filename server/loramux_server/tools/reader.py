"""The base class of readers that parse tool calls from a completion."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loramux_server.tools.held import Held, UnfinishedError


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of the model."""

    id: str
    name: str
    arguments: str
    """A JSON object, as text."""


class Read(NamedTuple):
    """The text and the calls released by one `push` or `flush`."""

    text: str
    calls: Sequence[ToolCall]


class Reader(ABC):
    """Parses the calls of one completion.

    What does not turn out to be a call is returned as text, unchanged. White space between text and
    calls is dropped, and so is the markup around calls.
    """

    def __init__(self, *, most: int | None) -> None:
        """Read at most `most` calls; None for any number."""
        self._most = most
        self._held = Held()
        """Text that cannot be classified yet."""
        self.num_calls = 0

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of calls has been read."""
        return self._most is not None and self.num_calls >= self._most

    def push(self, piece: str) -> Read:
        """Add the next piece of text, and return what can be classified by now."""
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
            is_ended: Whether the model ended it, so that it was not cut off.
        """
        call = self._last_call() if is_ended and not self.is_full else None
        if call is not None:
            self.num_calls += 1
        held = self._held.taken(len(self._held.text))
        return Read("" if self._is_after_call else held, [call] if call else [])

    @abstractmethod
    def _step(self) -> ToolCall | str:
        """Consume the start of the held text and return it: a call, or text.

        Empty text means that only the state advanced.

        Raises:
            UnfinishedError: More text is needed to tell.
        """

    @property
    @abstractmethod
    def _is_after_call(self) -> bool:
        """Whether the held text can only be markup after a call."""

    def _given_up(self) -> str | None:
        """Return the held text if it is too long to be anything else; None to wait."""
        return None

    def _last_call(self) -> ToolCall | None:
        """Return the held call if only its closing is missing at the end of the completion."""
        return None
