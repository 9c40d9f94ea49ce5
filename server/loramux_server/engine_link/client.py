"""Sends requests to the engine, and routes its answers to the mailboxes of calls."""

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from loramux.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.engine_link.process import EngineProcess
from loramux_server.engine_link.quarantine import Quarantine
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import (
    Cancel,
    Drop,
    Failure,
    Pause,
    Pin,
    Report,
    Resume,
    Submit,
    Unpin,
)

_log = logging.getLogger(__name__)

RETRY_DELAY = 1.0

_FAILURES: dict[str, type[LoramuxError]] = {
    "QUEUE_FULL": ResourceExhaustedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "DEADLINE_UNREACHABLE": ResourceExhaustedError,
    "INVALID_FIELD": InvalidArgumentError,
    "CONTEXT_LENGTH_EXCEEDED": InvalidArgumentError,
    "ADAPTER_TOO_LARGE": FailedPreconditionError,
    "ADAPTER_NOT_FINITE": FailedPreconditionError,
    "ADAPTER_BASE_MISMATCH": FailedPreconditionError,
    "ADAPTER_NOT_MIXABLE": FailedPreconditionError,
    "ADAPTER_DAMAGED": DataLossError,
    "STORE_UNAVAILABLE": UnavailableError,
    "ENGINE_OUT_OF_MEMORY": UnavailableError,
    "ENGINE_UNAVAILABLE": UnavailableError,
    "IMAGES_NOT_SERVED": FailedPreconditionError,
    "STRUCTURED_OUTPUT_FAILED": FailedPreconditionError,
    "UNSUPPORTED_ADAPTER_FEATURE": FailedPreconditionError,
}


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that the engine works on, and the mailbox for its results."""

    mailbox: Mailbox[Any]
    index: int
    ask: Ask
    is_probe: bool


class EngineClient:
    """Owns the calls that wait for the engine."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_report: Callable[[Report], None],
        on_ready: Callable[[bool], None],
        watchdog: float = 0.0,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Prepare; nothing is started before `process.start`.

        Args:
            config: Settings of the engine.
            on_report: Called with each report.
            on_ready: Called with whether the engine is ready, whenever that changes.
            watchdog: Seconds of silence after which the engine is replaced; 0 means never.
            quarantine: Refuses what keeps crashing the engine.
        """
        self.process = EngineProcess(
            config, on_report=self._dispatch, on_ready=self._ready_or_dead, watchdog=watchdog
        )
        self.quarantine = quarantine or Quarantine(max_deaths=0)
        self._on_report = on_report
        self._on_ready = on_ready
        self._calls: dict[int, _Call] = {}
        self._next_id = 0

    def submit(
        self,
        mailbox: Mailbox[Any],
        index: int,
        ask: Ask,
        *,
        timeout: float | None = None,
        weight: int = 1,
        priority: int = 0,
        is_probe: bool = False,
    ) -> int:
        """Send a request to the engine and return its id.

        Args:
            mailbox: Receives its tokens, or its scores if a text is read.
            index: Index of the request in `mailbox`.
            ask: The request.
            timeout: Seconds within which it must finish.
            weight: Fair-share weight of its tenant.
            priority: Order among the requests of its tenant; lower goes first.
            is_probe: Whether it is the server's own health probe, which quarantine ignores.

        Raises:
            UnavailableError: The engine is not ready.
            FailedPreconditionError: The request or its adapter is in quarantine.
        """
        if not is_probe:
            self.quarantine.check(ask)
        if not self.process.is_ready:
            raise self._unavailable("is starting")
        self._next_id += 1
        self._calls[self._next_id] = _Call(mailbox, index, ask, is_probe)
        self.process.send(Submit(self._next_id, ask, timeout, weight, priority))
        return self._next_id

    def finish(self, request_id: int) -> None:
        """End a completion that needs no more tokens, if it is still in progress."""
        if call := self._calls.get(request_id):
            self.quarantine.ended_well(call.ask)
            self.cancel(request_id)

    def cancel(self, request_id: int) -> None:
        """Cancel a request if it is still in progress."""
        if self._calls.pop(request_id, None) and self.process.is_ready:
            self.process.send(Cancel(request_id))

    def pause(self, request_ids: Iterable[int], is_paused: bool) -> None:
        """Pause or resume completions, if they are still in progress."""
        for request_id in request_ids:
            if request_id in self._calls and self.process.is_ready:
                self.process.send(Pause(request_id) if is_paused else Resume(request_id))

    def drop(self, digest: str) -> bool:
        """Let the engine drop an adapter once it is unused; return whether the engine is ready."""
        if self.process.is_ready:
            self.process.send(Drop(digest))
        return self.process.is_ready

    def pin(self, adapter: AdapterSource) -> None:
        """Pin an adapter to the device."""
        if self.process.is_ready:
            self.process.send(Pin(adapter))

    def unpin(self, digest: str) -> None:
        """Unpin an adapter."""
        if self.process.is_ready:
            self.process.send(Unpin(digest))

    def close(self) -> None:
        """Fail all calls in progress, because the server shuts down."""
        self._end_all(
            UnavailableError(
                "the server is shutting down; try again",
                reason="ENGINE_UNAVAILABLE",
                retry_delay=RETRY_DELAY,
            )
        )

    def _dispatch(self, report: Report) -> None:
        for started in report.started:
            if call := self._calls.get(started.request_id):
                call.mailbox.on_started(started)
        for prompt in report.prompts:  # before the tokens that follow it
            if call := self._calls.get(prompt.request_id):
                call.mailbox.put(call.index, prompt)
                if prompt.finish:
                    del self._calls[prompt.request_id]
                    self.quarantine.ended_well(call.ask)
        for token in report.tokens:
            if call := self._calls.get(token.request_id):
                call.mailbox.put(call.index, token)
                if token.finish:
                    del self._calls[token.request_id]
                    self.quarantine.ended_well(call.ask)
        for scores in report.scores:
            if call := self._calls.pop(scores.request_id, None):
                call.mailbox.put(call.index, scores)
                self.quarantine.ended_well(call.ask)
        for failure in report.failures:
            if call := self._calls.pop(failure.request_id, None):
                if failure.reason == "ADAPTER_NOT_FINITE" and call.ask.digest:
                    self.quarantine.was_not_finite(call.ask.digest)
                call.mailbox.fail(_error_of(failure))
        self._on_report(report)

    def _ready_or_dead(self, is_ready: bool) -> None:
        self._on_ready(is_ready)
        if not is_ready:
            self.quarantine.engine_died(
                call.ask for call in self._calls.values() if not call.is_probe
            )
            if self.process.ran_out_of_memory:
                self._end_all(self._unavailable("ran out of memory", "ENGINE_OUT_OF_MEMORY"))
            else:
                self._end_all(self._unavailable("died"))

    def _end_all(self, error: LoramuxError) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.mailbox.fail(error)
        if calls:
            _log.error("%d completions failed: %s", len(calls), error)

    def _unavailable(self, what: str, reason: str = "ENGINE_UNAVAILABLE") -> UnavailableError:
        # Jitter, so that callers do not all retry at the same moment.
        delay = self.process.seconds_to_ready * random.uniform(1.0, 1.5)
        return UnavailableError(f"the engine {what}; try again", reason=reason, retry_delay=delay)


def _error_of(failure: Failure) -> LoramuxError:
    kind = _FAILURES.get(failure.reason, InternalError)
    delay = RETRY_DELAY if kind in (ResourceExhaustedError, UnavailableError) else None
    return kind(failure.message, reason=failure.reason, field=failure.field, retry_delay=delay)
