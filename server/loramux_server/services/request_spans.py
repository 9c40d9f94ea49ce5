"""Trace spans of requests in the engine: their phases, adapter loads and steps.

The engine knows nothing of traces. Its reports say how long things took, and a step counts as ended
when its report arrives; so times are off by the report's latency. Where steps overlap on a device,
a load may have ended up to a step later than its span says.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from loramux_server.observe.call_record import current
from loramux_server.observe.spans import Attributes, Span
from loramux_server.services.observer import outcome_of
from loramux_server.wire.messages import BatchSize, Load, Report

MAX_LOADS = 8
"""Load spans per completion: one for each tier, and more only if it starts over."""


class RequestSpans:
    """Owns the spans of traced requests that the engine works on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty; `clock` is that of the spans."""
        self._clock = clock
        self._live: dict[int, _Completion] = {}
        """The engine's request id -> completion."""

    @contextmanager
    def following(
        self,
        name: str,
        request_attributes: Callable[[], Attributes],
        answered: Callable[[], Attributes],
        *,
        ids: Sequence[int],
        digest: str | None,
    ) -> Iterator[None]:
        """Trace a request that was just submitted and ends with the block.

        Args:
            name: Name of its span.
            request_attributes: Returns the attributes of the request.
            answered: Returns the attributes of its answer, which may be incomplete.
            ids: The engine's ids of its completions, in order.
            digest: Digest of its adapter, None for the base.
        """
        record = current()
        if record is None or record.span is None or not record.span.is_recorded:
            yield
            return
        now = self._clock()
        whole = record.span.child(name, now, request_attributes())
        mine = {each: _Completion(whole, index, digest, now) for index, each in enumerate(ids)}
        self._live |= mine
        error = ""
        try:
            yield
        except BaseException as failure:
            error = outcome_of(failure).upper()
            raise
        finally:
            now = self._clock()
            for each, completion in mine.items():
                completion.ended(now, error)
                del self._live[each]
            whole.end(now, answered(), error=error)

    def report(self, report: Report) -> None:
        """Process the report of one engine step."""
        if not self._live:
            return
        now = self._clock()
        # When the step of this report began. Finished loads were collected and requests left the
        # queue before that.
        begin = now - (report.batch.seconds if report.batch else 0.0)
        for load in report.loads:
            for each in self._live.values():
                each.loaded(load, begin)
        for started in report.started:
            if completion := self._live.get(started.request_id):
                completion.started(begin, started.queue_seconds)
        for token in report.tokens:
            if completion := self._live.get(token.request_id):
                completion.token(report.batch, begin, now)
        ended = [prompt.request_id for prompt in report.prompts if prompt.finish]
        for request_id in (*ended, *(scores.request_id for scores in report.scores)):
            if completion := self._live.get(request_id):
                completion.scored(report.batch, begin, now)


class _Completion:
    """One completion in the engine: first queued, then in prefill, then in decode.

    A text that is only read ends with its prefill, and so does a prompt without a completion.
    """

    __slots__ = (
        "_digest", "_index", "_is_open", "_last", "_num_loads", "_num_tokens", "_phase", "_whole"
    )  # fmt: skip

    def __init__(self, whole: Span, index: int, digest: str | None, now: float) -> None:
        self._whole = whole
        self._index = index
        self._digest = digest
        self._num_tokens = 0
        self._num_loads = 0
        self._last = now
        """When its last token came."""
        self._phase = self._open_span("queue", now)

    def loaded(self, load: Load, end: float) -> None:
        """Record a finished load, which may be of another request's adapter."""
        if load.digest == self._digest and self._num_loads < MAX_LOADS:
            self._num_loads += 1
            attributes = {"loramux.adapter.tier": load.tier, "loramux.adapter.digest": load.digest}
            self._phase.child("adapter load", end - load.seconds, attributes).end(end)

    def started(self, moment: float, queue_seconds: float) -> None:
        """Record that it left the queue, after `queue_seconds` by the engine's clock."""
        self._phase.end(moment, {"loramux.queue.seconds": queue_seconds})
        self._phase = self._open_span("prefill", moment)

    def token(self, batch: BatchSize | None, begin: float, end: float) -> None:
        """Record a token, generated by a step of `batch` from `begin` to `end`."""
        self._num_tokens += 1
        if self._num_tokens == 2:
            self._phase = self._open_span("decode", self._last)
        # Steps of tokens 1, 2, 4, 8, … only: few spans for a long answer, and some for a short one.
        if self._num_tokens & (self._num_tokens - 1) == 0:
            self._step(batch, begin, end, {"loramux.token.number": self._num_tokens})
        if self._num_tokens == 1:
            self._close(end)
        self._last = end

    def scored(self, batch: BatchSize | None, begin: float, end: float) -> None:
        """Record the end of what has no completion, in the last step of its prompt."""
        self._step(batch, begin, end, {})
        self._close(end)

    def ended(self, now: float, error: str) -> None:
        """Record the end of the request, which may be later than that of this completion."""
        if self._is_open:
            attributes = {"loramux.completion.tokens": self._num_tokens}
            self._phase.end(now if error else self._last, attributes, error=error)

    def _step(
        self, batch: BatchSize | None, begin: float, end: float, attributes: Attributes
    ) -> None:
        if batch:
            sizes: Attributes = {
                "loramux.batch.requests": batch.requests,
                "loramux.batch.tokens": batch.tokens,
                "loramux.batch.adapters": batch.adapters,
            }
            self._phase.child("engine step", begin, {**sizes, **attributes}).end(end)

    def _open_span(self, name: str, begin: float) -> Span:
        self._is_open = True
        return self._whole.child(name, begin, {"loramux.completion.index": self._index})

    def _close(self, end: float) -> None:
        """End the phase; there may be no further one."""
        self._phase.end(end)
        self._is_open = False
