"""Metrics and timing of one request."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loramux.errors import LoramuxError
from loramux.v1 import generation_pb2
from loramux_server.forms.form import FormKind
from loramux_server.metrics.series import STORE_FULL, AdapterSeries, Metrics
from loramux_server.metrics.tenants import TenantSeries
from loramux_server.metrics.top_labels import NONE
from loramux_server.observe.call_record import note
from loramux_server.wire.messages import Started


def outcome_of(error: BaseException) -> str:
    """Return the outcome label of a failed call: its gRPC status in lower case."""
    if isinstance(error, LoramuxError):
        return error.code.name.lower()
    is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return "cancelled" if is_cancelled else "internal"


@contextmanager
def counting_failed_uploads(metrics: Metrics) -> Iterator[None]:
    """Count the upload as failed if the block raises."""
    try:
        yield
    except BaseException as error:
        is_full = isinstance(error, LoramuxError) and error.reason == "STORE_FULL"
        metrics.uploads.labels(STORE_FULL if is_full else outcome_of(error)).inc()
        raise


class Observer:
    """Measures one request from arrival to end."""

    def __init__(self, metrics: Metrics, tenant: str) -> None:
        """Record the arrival of a request of `tenant`."""
        self._metrics = metrics
        self._tenant = tenant
        metrics.tenants.arrived(tenant)
        self._adapter: str | None = None
        self._arrival = time.monotonic()
        self._queued: float | None = None
        self._first: float | None = None
        self._last: dict[int, float] = {}
        self._num_prompt = 0
        self.num_generated = 0
        """Tokens generated so far, over all completions."""
        self._cached: list[int] = []
        """Prompt tokens that were not computed, for each completion or text that has started."""

    def resolved(self, adapter: str, num_prompt: int, form: FormKind | None = None) -> None:
        """Record the adapter (empty for the base), the length of the prompt, and the form."""
        if form:
            self._metrics.structured.labels(form.value).inc()
        self._adapter = adapter
        self._num_prompt = num_prompt
        self._metrics.labels.count(adapter)
        self._series.prompt_tokens.inc(num_prompt)
        self._of_tenant.prompt_tokens += num_prompt
        self._metrics.totals.prompt_tokens += num_prompt

    def started(self, started: Started) -> None:
        """Record that a completion left the engine's queue; only the first one's time counts."""
        self._cached.append(started.cached_tokens)
        if self._queued is None:
            self._queued = started.queue_seconds
            self._metrics.queue.observe(started.queue_seconds)

    def tokens(self, index: int, count: int) -> None:
        """Record `count` new tokens of completion `index`."""
        series, totals, now = self._series, self._metrics.totals, time.monotonic()
        if self._first is None:
            self._first = now - self._arrival
            series.first_token.observe(self._first)
            totals.first_tokens += 1
            totals.first_token_seconds += self._first
        # Tokens that arrive together share the time since the token before them.
        last = self._last.get(index)
        gaps, gap = (count - 1, 0.0) if last is None else (count, (now - last) / count)
        series.tokens.add(count, gaps, gap)
        totals.gaps += gaps
        totals.gap_seconds += gaps * gap
        self._last[index] = now
        self.num_generated += count
        self._of_tenant.generated_tokens += count
        totals.generated_tokens += count

    def ended(self, error: BaseException | None = None) -> None:
        """Record the end: success, or `error`."""
        outcome = "ok" if error is None else outcome_of(error)
        self._metrics.totals.requests += 1
        self._of_tenant.ended(outcome, error)
        if self._adapter is None:  # refused before its adapter was resolved
            self._metrics.requests.labels(NONE, outcome).inc()
            return
        self._note()
        self._metrics.requests.labels(self._metrics.labels.label(self._adapter), outcome).inc()
        self._series.duration.observe(time.monotonic() - self._arrival)

    def _note(self) -> None:
        note(
            adapter=self._adapter or None,
            prompt_tokens=self._num_prompt,
            completion_tokens=self.num_generated,
            queue_seconds=None if self._queued is None else round(self._queued, 6),
            first_token_seconds=None if self._first is None else round(self._first, 6),
        )

    def cached_tokens(self, *, is_shared: bool) -> int:
        """Return how many prompt tokens were not computed.

        If completions share the prompt (`is_shared`), only tokens that no completion had to compute
        count; otherwise those of all texts add up.
        """
        return min(self._cached, default=0) if is_shared else sum(self._cached)

    def timing(self) -> generation_pb2.Timing:
        """Return the times so far."""
        return generation_pb2.Timing(
            queue_seconds=self._queued or 0.0,
            time_to_first_token_seconds=self._first or 0.0,
            total_seconds=time.monotonic() - self._arrival,
        )

    # Looked up each time: an adapter may lose its own metric series while a request runs.
    @property
    def _series(self) -> AdapterSeries:
        return self._metrics.of(self._adapter or "")

    @property
    def _of_tenant(self) -> TenantSeries:
        return self._metrics.tenants.of(self._tenant)
