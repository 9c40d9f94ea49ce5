"""What one request adds to the metrics, and its times."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loramux.errors import LoramuxError
from loramux.v1 import generation_pb2
from loramux_server.forms.form import FormKind
from loramux_server.metrics.adapter_labels import NONE
from loramux_server.metrics.series import STORE_FULL, AdapterSeries, Metrics
from loramux_server.metrics.tenants import TenantSeries
from loramux_server.observe.call_record import note
from loramux_server.wire.messages import Started


def outcome_of(error: BaseException) -> str:
    """Return the label of a call that ended with `error`: the gRPC status in lower case."""
    if isinstance(error, LoramuxError):
        return error.code.name.lower()
    is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return "cancelled" if is_cancelled else "internal"


@contextmanager
def counting_failed_uploads(metrics: Metrics) -> Iterator[None]:
    """Count an upload that ends with the error of the block."""
    try:
        yield
    except BaseException as error:
        is_full = isinstance(error, LoramuxError) and error.reason == "STORE_FULL"
        metrics.uploads.labels(STORE_FULL if is_full else outcome_of(error)).inc()
        raise


class Observer:
    """Follows one request from arrival to end."""

    def __init__(self, metrics: Metrics, tenant: str) -> None:
        """Begin with the arrival of a request of `tenant`."""
        self._metrics = metrics
        self._tenant = tenant
        metrics.tenants.arrived(tenant)
        self._adapter: str | None = None
        self._arrival = time.monotonic()
        self._queued: float | None = None
        self._first: float | None = None
        self._last: dict[int, float] = {}
        self._num_prompt = 0
        self.num_made = 0
        """Tokens so far, over all completions."""
        self._cached: list[int] = []
        """Of each completion or text that has started: tokens that were not computed for it."""

    def resolved(self, adapter: str, num_prompt: int, form: FormKind | None = None) -> None:
        """Note the request's adapter, empty for the base, its prompt's length, and its form."""
        if form:
            self._metrics.structured.labels(form.value).inc()
        self._adapter = adapter
        self._num_prompt = num_prompt
        self._metrics.labels.count(adapter)
        self._series.prompt_tokens.inc(num_prompt)
        self._of_tenant.prompt_tokens += num_prompt
        self._metrics.totals.prompt_tokens += num_prompt

    def started(self, started: Started) -> None:
        """Note that a completion left the engine's queue; the time of the first one counts."""
        self._cached.append(started.cached_tokens)
        if self._queued is None:
            self._queued = started.queue_seconds
            self._metrics.queue.observe(started.queue_seconds)

    def tokens(self, index: int, count: int) -> None:
        """Note `count` new tokens of completion `index`."""
        series, totals, now = self._series, self._metrics.totals, time.monotonic()
        if self._first is None:
            self._first = now - self._arrival
            series.first_token.observe(self._first)
            totals.first_tokens += 1
            totals.first_token_seconds += self._first
        # Tokens that came together share the time since the one before them.
        last = self._last.get(index)
        gaps, gap = (count - 1, 0.0) if last is None else (count, (now - last) / count)
        series.tokens.add(count, gaps, gap)
        totals.gaps += gaps
        totals.gap_seconds += gaps * gap
        self._last[index] = now
        self.num_made += count
        self._of_tenant.generated_tokens += count
        totals.generated_tokens += count

    def ended(self, error: BaseException | None = None) -> None:
        """Note the end: well, or with `error`."""
        outcome = "ok" if error is None else outcome_of(error)
        self._metrics.totals.requests += 1
        self._of_tenant.ended(outcome, error)
        if self._adapter is None:  # refused before it was known what it asks for
            self._metrics.requests.labels(NONE, outcome).inc()
            return
        self._note()
        self._metrics.requests.labels(self._metrics.labels.label(self._adapter), outcome).inc()
        self._series.duration.observe(time.monotonic() - self._arrival)

    def _note(self) -> None:
        note(
            adapter=self._adapter or None,
            prompt_tokens=self._num_prompt,
            completion_tokens=self.num_made,
            queue_seconds=None if self._queued is None else round(self._queued, 6),
            first_token_seconds=None if self._first is None else round(self._first, 6),
        )

    def cached_tokens(self, *, is_shared: bool) -> int:
        """Return how many tokens of its prompt nothing was computed for.

        Where completions share the prompt, that is so of those that no completion had to compute.
        """
        return min(self._cached, default=0) if is_shared else sum(self._cached)

    def timing(self) -> generation_pb2.Timing:
        """Return where the time went so far."""
        return generation_pb2.Timing(
            queue_seconds=self._queued or 0.0,
            time_to_first_token_seconds=self._first or 0.0,
            total_seconds=time.monotonic() - self._arrival,
        )

    # Both are asked for each time: a label may lose the series of its own while a request runs.
    @property
    def _series(self) -> AdapterSeries:
        return self._metrics.of(self._adapter or "")

    @property
    def _of_tenant(self) -> TenantSeries:
        return self._metrics.tenants.of(self._tenant)
