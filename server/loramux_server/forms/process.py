"""The engine's handle on the worker process: one answer at a time."""

import contextlib
import logging
from collections.abc import Callable, Sequence

from loramux_server.confinement.child import (
    START_SECONDS,
    ExitCause,
    end,
    exit_cause_of,
    log_missing_layers,
    spawn,
)
from loramux_server.forms.messages import (
    Allowed,
    Broken,
    End,
    FromWorker,
    MaskDraft,
    MaskedDraft,
    Prepared,
    Setup,
    ToWorker,
    decode_from_worker,
    encode,
)
from loramux_server.wire.channel import read_message, write_message

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
"""The process limits its own processor time; this is for one that does not get to run."""


class UnusableError(Exception):
    """No form can be used with this base's tokenizer."""


class NotStartedError(Exception):
    """The process could not be started."""


class LostError(Exception):
    """The process ended, or must be ended, before it answered."""


class Process:
    """Owns one worker process."""

    def __init__(self, setup: Setup) -> None:
        """Start it, and wait until it is ready.

        Raises:
            UnusableError: It cannot work with this tokenizer.
            NotStartedError: The system has no resources for it, or it ended or hung during start.
        """
        try:
            self._connection, self._process = spawn("loramux_server.forms.worker")
        except OSError as error:
            _log.error("the process that enforces structured output does not start: %s", error)
            raise NotStartedError(
                "the process that enforces structured output does not start"
            ) from None
        try:
            self._connection.settimeout(START_SECONDS)
            self._write(setup)
            log_missing_layers("enforces structured output", self._receive())
            answer = self._read()
        except LostError:
            _log.error(
                "the process that enforces structured output ended with exit code %s", self.close()
            )
            raise NotStartedError(
                "the process that enforces structured output does not start"
            ) from None
        assert isinstance(answer, Prepared)
        if answer.fault:
            self.close()
            raise UnusableError(
                f"structured output is not possible with the base's tokenizer: {answer.fault}"
            )
        self._connection.settimeout(ANSWER_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether it exited by itself."""
        return self._process.poll() is not None

    def ask(self, messages: Sequence[ToWorker], take: Callable[[Allowed | Broken], None]) -> None:
        """Send `messages`, and pass each answer to `take` as it arrives.

        All messages must fit into the socket buffer: no answer is read before all are sent.

        Raises:
            LostError: An answer did not come.
        """
        for message in messages:
            self._write(message)
        for _ in messages:
            answer = self._read()
            assert isinstance(answer, Allowed | Broken)
            take(answer)

    def mask_draft(self, message: MaskDraft) -> MaskedDraft:
        """Return what may follow each token of a draft.

        Raises:
            LostError: No answer came.
        """
        self._write(message)
        answer = self._read()
        assert isinstance(answer, MaskedDraft)
        return answer

    def notify(self, message: End) -> None:
        """Send a message that has no answer; if it is lost, the next request fails."""
        with contextlib.suppress(LostError):
            self._write(message)

    def close(self) -> int | None:
        """Stop it; return its exit code if it exited by itself, else None."""
        self._connection.close()
        return end(self._process)

    def why_lost(self) -> ExitCause:
        """Stop it and return why it did not answer."""
        return exit_cause_of(self.close())

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
