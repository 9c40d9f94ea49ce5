"""Exports spans to the collector: a bounded queue and a thread that empties it.

The SDK's own BatchSpanProcessor is not used: it restarts its thread in every fork of the process,
even one that is about to exec the engine, where that may hang; and it does not count dropped spans.
"""

import logging
import os
import threading
from collections import deque

from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_BSP_SCHEDULE_DELAY,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import Counter

from loramux_server.config import ConfigError

_log = logging.getLogger(__name__)


class SpanQueue(SpanProcessor):
    """Accepts spans from any thread without blocking, and exports them on its own thread."""

    def __init__(self, exporter: SpanExporter, spans: Counter) -> None:
        """Start the thread.

        Args:
            exporter: Sends spans.
            spans: Counts spans by outcome.

        Raises:
            ConfigError: An OTEL_BSP_… variable is not a positive integer.
        """
        self._exporter = exporter
        self._max_waiting = _setting(OTEL_BSP_MAX_QUEUE_SIZE, 2048)
        self._batch_size = _setting(OTEL_BSP_MAX_EXPORT_BATCH_SIZE, 512)
        self._delay = _setting(OTEL_BSP_SCHEDULE_DELAY, 5000) / 1000
        self._dropped, self._exported, self._failed = map(
            spans.labels, ("dropped", "exported", "failed")
        )
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._is_ending = False
        self._is_failing = False
        # A daemon, since it may hang in a request that the exporter never gives up.
        self._thread = threading.Thread(target=self._send, name="spans", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span, or drop it if the queue is full."""
        if not (span.context and span.context.trace_flags.sampled):
            return
        if len(self._waiting) >= self._max_waiting:
            self._dropped.inc()
            return
        self._waiting.append(span)
        if len(self._waiting) >= self._batch_size:
            self._wake.set()

    def close(self, patience: float) -> None:
        """Export the queued spans for up to `patience` seconds; the rest fails."""
        self._is_ending = True
        self._wake.set()
        self._thread.join(patience)
        self._exporter.shutdown()  # stops its retries
        self._thread.join(patience)

    def _send(self) -> None:
        is_last = False
        while not is_last:
            self._wake.wait(self._delay)
            self._wake.clear()
            is_last = self._is_ending  # read before emptying, so that all spans until then are sent
            while self._waiting:
                count = min(self._batch_size, len(self._waiting))
                self._export([self._waiting.popleft() for _ in range(count)])

    def _export(self, spans: list[ReadableSpan]) -> None:
        fault = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # no failure of an exporter may affect calls
            result, fault = SpanExportResult.FAILURE, f" ({type(error).__name__})"
        is_failing = result is not SpanExportResult.SUCCESS
        (self._failed if is_failing else self._exported).inc(len(spans))
        if is_failing and not self._is_failing:
            _log.warning("the trace collector is failing%s: spans are dropped and counted", fault)
        elif self._is_failing and not is_failing:
            _log.info("the trace collector accepts spans again")
        self._is_failing = is_failing


def _setting(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ConfigError(f"{name} is {text!r}; expected a positive integer")
    return int(text)
