"""The frontend's end of the engine process: start it, talk to it, start it again when it dies."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loramux.errors import (
    DataLossError,
    FailedPreconditionError,
    InternalError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux_server.config import ConfigError
from loramux_server.engine.channel import LENGTH, frame
from loramux_server.engine.messages import (
    AdapterSource,
    Cancel,
    Drop,
    EngineConfig,
    Failure,
    FromEngine,
    ModelInfo,
    Ready,
    Report,
    Sampling,
    Started,
    StartFailed,
    Submit,
    ToEngine,
    Token,
    decode_from_engine,
    encode,
)

_log = logging.getLogger(__name__)

MAX_DEATHS = 5
DEATH_WINDOW = 60.0
"""So many deaths in so many seconds mean that starting again will not help."""
RETRY_DELAY = 1.0

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    # OpenMP threads that wait for each other for milliseconds without sleeping keep everybody else
    # off the cores: with one other busy process on two cores, steps took fifty times as long.
    "GOMP_SPINCOUNT": "10000",
}
"""What the engine's environment has unless it says otherwise."""

_FAILURES: dict[str, type[LoramuxError]] = {
    "QUEUE_FULL": ResourceExhaustedError,
    "ADAPTER_TOO_LARGE": FailedPreconditionError,
    "ADAPTER_NOT_FINITE": FailedPreconditionError,
    "ADAPTER_BASE_MISMATCH": FailedPreconditionError,
    "ADAPTER_DAMAGED": DataLossError,
}


class EngineDiedError(ConfigError):
    """The engine ended before it was ready, and did not say why."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to one completion of a call."""

    index: int
    what: Token | Started


class Mailbox:
    """What the engine says about the completions of one call, in order."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._error: LoramuxError | None = None
        self._arrived = asyncio.Event()

    async def take(self) -> list[Event]:
        """Wait, and return everything that has arrived: more than one event if the reader is slow.

        Raises:
            LoramuxError: A completion failed, or the engine died.
        """
        await self._arrived.wait()
        self._arrived.clear()
        if self._error:
            raise self._error
        events = list(self._events)
        self._events.clear()
        return events

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self._arrived.set()

    def fail(self, error: LoramuxError) -> None:
        """Make `take` raise `error`."""
        self._error = error
        self._arrived.set()


class EngineClient:
    """Owns the engine process and the calls that wait for it."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_report: Callable[[Report], None],
        on_ready: Callable[[bool], None],
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            config: What the engine is told.
            on_report: Called with each report.
            on_ready: Called with whether the engine answers, whenever that changes.
        """
        self._config = config
        self._on_report = on_report
        self._on_ready = on_ready
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._calls: dict[int, tuple[Mailbox, int]] = {}
        self._next_id = 0
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._supervisor: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether the engine answers."""
        return self._writer is not None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> ModelInfo:
        """Start the engine and return what it serves.

        Raises:
            ConfigError: The engine cannot start with this config.
        """
        reader, model = await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(reader), name="engine")
        return model

    async def wait_failed(self) -> None:
        """Return when the engine cannot be kept alive; its cause is logged."""
        assert self._supervisor is not None
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._supervisor)

    async def stop(self) -> None:
        """End the engine; calls that still wait fail."""
        self._is_stopping = True
        if self._writer:
            self._writer.close()
        elif self._process and self._process.returncode is None:
            self._process.kill()  # still loading: it would not look at its socket before the end
        if self._process and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), timeout=10)
            except TimeoutError:
                self._process.kill()
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    def submit(
        self,
        mailbox: Mailbox,
        index: int,
        prompt: list[int],
        adapter: AdapterSource | None,
        sampling: Sampling,
    ) -> int:
        """Start a completion, whose events go to `mailbox` under `index`, and return its id.

        Raises:
            UnavailableError: The engine is away.
        """
        if not self.is_ready:
            raise _unavailable("is starting")
        self._next_id += 1
        self._calls[self._next_id] = (mailbox, index)
        self._send(Submit(self._next_id, prompt, adapter, sampling))
        return self._next_id

    def cancel(self, request_id: int) -> None:
        """End a completion if it is still going on."""
        if self._calls.pop(request_id, None) and self.is_ready:
            self._send(Cancel(request_id))

    def drop(self, digest: str) -> None:
        """Let the engine forget an adapter that is not in use."""
        if self.is_ready:
            self._send(Drop(digest))

    def _send(self, message: ToEngine) -> None:
        assert self._writer is not None
        self._writer.write(frame(encode(message)))

    async def _spawn(self) -> tuple[asyncio.StreamReader, ModelInfo]:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loramux_server.engine.process",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT | os.environ,
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        writer.write(frame(encode(self._config)))
        first = await _read(reader)
        if isinstance(first, Ready):
            self._writer = writer
            self._on_ready(True)
            return reader, first.model
        writer.close()
        code = await self._process.wait()
        if isinstance(first, StartFailed):
            raise ConfigError(first.message)
        raise EngineDiedError(f"the engine ended with exit code {code} before it was ready")

    async def _supervise(self, reader: asyncio.StreamReader) -> None:
        while True:
            while isinstance(report := await _read(reader), Report):
                self._dispatch(report)
            await self._bury()
            again = await self._start_again()
            if again is None:
                return
            reader = again

    async def _start_again(self) -> asyncio.StreamReader | None:
        """Return what a new engine writes to, or None if there will be none."""
        while not self._is_stopping:
            is_often = len(self._deaths) == MAX_DEATHS
            if is_often and self._deaths[-1] - self._deaths[0] < DEATH_WINDOW:
                _log.error("the engine died %d times in %d s", MAX_DEATHS, DEATH_WINDOW)
                return None
            try:
                reader, _ = await self._spawn()
            except EngineDiedError as error:
                self._deaths.append(time.monotonic())
                _log.error("%s", error)
            except ConfigError as error:
                _log.error("the engine cannot start again: %s", error)
                return None
            else:
                return reader
        return None

    def _dispatch(self, report: Report) -> None:
        for started in report.started:
            if call := self._calls.get(started.request_id):
                call[0].put(Event(call[1], started))
        for token in report.tokens:
            call = self._calls.get(token.request_id)
            if call:
                call[0].put(Event(call[1], token))
                if token.finish:
                    del self._calls[token.request_id]
        for failure in report.failures:
            call = self._calls.pop(failure.request_id, None)
            if call:
                call[0].fail(_error_of(failure))
        self._on_report(report)

    async def _bury(self) -> None:
        """End every call that waited for an engine that is gone."""
        if self._writer:
            self._writer.close()
            self._writer = None
        self._on_ready(False)
        calls, self._calls = self._calls, {}
        for mailbox, _ in calls.values():
            mailbox.fail(_unavailable("died"))
        assert self._process is not None
        # Its end of the socket is closed; whatever is left of it must go before the next starts.
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        code = await self._process.wait()
        self._deaths.append(time.monotonic())
        if not self._is_stopping:
            _log.error("the engine died with exit code %s; %d calls ended", code, len(calls))


async def _read(reader: asyncio.StreamReader) -> FromEngine | None:
    """Return the engine's next message, or None when it is gone."""
    try:
        head = await reader.readexactly(LENGTH.size)
        message: FromEngine = decode_from_engine(await reader.readexactly(LENGTH.unpack(head)[0]))
        return message
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _unavailable(what: str) -> UnavailableError:
    return UnavailableError(
        f"the engine {what}; try again", reason="ENGINE_UNAVAILABLE", retry_delay=RETRY_DELAY
    )


def _error_of(failure: Failure) -> LoramuxError:
    kind = _FAILURES.get(failure.reason, InternalError)
    delay = RETRY_DELAY if kind is ResourceExhaustedError else None
    return kind(failure.message, reason=failure.reason, retry_delay=delay)
