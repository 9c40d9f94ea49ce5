"""The process that follows forms, seen from the engine: one answer after the other, or none."""

import contextlib
import logging
from collections.abc import Callable, Sequence

from loramux_server.confinement.child import (
    START_SECONDS,
    Offence,
    end,
    offence_of,
    spawn,
    tell_missing,
)
from loramux_server.forms.messages import (
    Allowed,
    Broken,
    End,
    Foresee,
    Foreseen,
    FromWorker,
    Prepared,
    Setup,
    ToWorker,
    decode_from_worker,
    encode,
)
from loramux_server.wire.channel import read_message, write_message

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
"""The process counts the time in which it runs; this is for one that does not get to run."""


class UnusableError(Exception):
    """No form can be followed with this tokenizer, whatever is done."""


class NotStartedError(Exception):
    """The process does not start."""


class LostError(Exception):
    """The process ended, or has to be ended, and the answer that was due does not come."""


class Process:
    """Owns one process."""

    def __init__(self, setup: Setup) -> None:
        """Start it, and wait until it is ready.

        Raises:
            UnusableError: It cannot do anything with this tokenizer.
            NotStartedError: The system has nothing left for it, it ended, or hangs.
        """
        try:
            self._connection, self._process = spawn("loramux_server.forms.worker")
        except OSError as error:
            _log.error("the process that follows forms does not start: %s", error)
            raise NotStartedError("the process that follows forms does not start") from None
        try:
            self._connection.settimeout(START_SECONDS)
            self._write(setup)
            tell_missing("follows forms", self._receive())
            answer = self._read()
        except LostError:
            _log.error("the process that follows forms ended with exit code %s", self.close())
            raise NotStartedError("the process that follows forms does not start") from None
        assert isinstance(answer, Prepared)
        if answer.fault:
            self.close()
            raise UnusableError(f"no form can be made of the tokens of this base: {answer.fault}")
        self._connection.settimeout(ANSWER_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process.poll() is not None

    def ask(self, messages: Sequence[ToWorker], take: Callable[[Allowed | Broken], None]) -> None:
        """Send `messages`, and give the answer to each to `take` as it comes.

        They have to fit into the socket: no answer is read before all are sent.

        Raises:
            LostError: One does not come.
        """
        for message in messages:
            self._write(message)
        for _ in messages:
            answer = self._read()
            assert isinstance(answer, Allowed | Broken)
            take(answer)

    def foresee(self, message: Foresee) -> Foreseen:
        """Return what may come behind a draft.

        Raises:
            LostError: There is no answer.
        """
        self._write(message)
        answer = self._read()
        assert isinstance(answer, Foreseen)
        return answer

    def tell(self, message: End) -> None:
        """Send a message that has no answer; whether it arrives, the next one shows."""
        with contextlib.suppress(LostError):
            self._write(message)

    def close(self) -> int | None:
        """End it; return the code with which it ended by itself, None if it did not."""
        self._connection.close()
        return end(self._process)

    def why_lost(self) -> Offence:
        """End it and return why it did not answer."""
        return offence_of(self.close())

    def _write(self, message: Setup | ToWorker) -> None:
        try:
            write_message(self._connection, encode(message))
        except OSError:
            raise LostError from None

    def _read(self) -> FromWorker:
        answer: FromWorker = decode_from_worker(self._receive())
        return answer

    def _receive(self) -> bytes:
        try:
            message = read_message(self._connection)
        except OSError:
            message = None
        if message is None:
            raise LostError
        return message
