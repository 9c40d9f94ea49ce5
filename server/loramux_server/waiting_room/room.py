"""Admission control: a call that the server has no capacity for is refused early.

Lives on the event loop, and is asked before anything is allocated for a request. While all limits
hold it costs two additions. When a call finds the room full, calls of tenants with a larger share
of it are evicted, the last to arrive first, if they have not started; and so are calls of its own
tenant that have a worse priority.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loramux.errors import DeadlineExceededError, LoramuxError, ResourceExhaustedError
from loramux_server.metrics.series import AdmissionMetrics
from loramux_server.waiting_room.eviction import calls_to_evict, reason
from loramux_server.waiting_room.forecast import CAUTION, Forecast
from loramux_server.waiting_room.limits import RoomLimits, RoomUsage
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.places import Places
from loramux_server.wire.messages import Stats

MIN_DELAY, MAX_DELAY = 0.1, 60.0
"""Bounds in seconds of the retry delay that callers are told."""
UNKNOWN_DELAY = 1.0
"""Retry delay while no rate has been measured."""


class WaitingRoom:
    """Counts what waits, and measures how fast it is served."""

    def __init__(
        self,
        limits: RoomLimits,
        *,
        metrics: AdmissionMetrics,
        clock: Callable[[], float],
        lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Open an empty room.

        Args:
            limits: How much may wait.
            metrics: Count refusals by cause.
            clock: Seconds, monotonic.
            lag: Returns the seconds by which the event loop lags.
        """
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._lag = lag
        self._places = Places()
        self._taken = RoomUsage()
        self._forecast = Forecast()
        self._updated_at = clock()
        self._num_free_blocks = limits.num_blocks

    @contextmanager
    def place(
        self,
        tenant: str,
        weight: int,
        num_bytes: int,
        *,
        max_tokens: int,
        seconds_left: float,
        priority: int = 0,
    ) -> Iterator[Place]:
        """Admit a call for as long as the block runs; `enter` adds its completions.

        Args:
            tenant: Tenant of the call.
            weight: The tenant's fair-share weight.
            num_bytes: Bytes of its message.
            max_tokens: Most tokens of a completion.
            seconds_left: Seconds until the deadline.
            priority: Order among the calls of its tenant; lower goes first.

        Raises:
            ResourceExhaustedError: The room is full and too little of it can be evicted, the event
                loop lags, or the call would miss its deadline.
        """
        self._check_lag()
        deadline = self._clock() + seconds_left
        place = Place(
            self, tenant, weight, num_bytes, priority=priority, max_tokens=max_tokens,
            deadline=deadline,
        )  # fmt: skip
        self._check_time(place, seconds_left)
        # Only checked: nothing is evicted for a request that is not validated yet.
        self._calls_to_evict(place, RoomUsage(1, 0, num_bytes))
        self._places.add(place)
        self._taken.bytes += num_bytes
        self._show()
        try:
            yield place
        finally:
            self._leave(place)

    def hold(self, place: Place, num_bytes: int) -> None:
        """Count `num_bytes` more for the call at `place`, of which nothing waits yet.

        Raises:
            ResourceExhaustedError: There is no room for them.
        """
        num_bytes += place.num_bytes
        self._taken.bytes -= place.num_bytes
        place.num_bytes = 0
        # Its own bytes do not count: a call that exceeds the limit by itself may wait alone.
        self._make_room(place, RoomUsage(0, 0, num_bytes))
        place.num_bytes = num_bytes
        self._taken.bytes += num_bytes
        self._show()

    def enter(
        self,
        place: Place,
        *,
        num_completions: int,
        num_prompt: int,
        seconds_left: float,
        on_evicted: Callable[[LoramuxError], None],
    ) -> None:
        """Add waiting completions of the call at `place`.

        Args:
            place: The call's place.
            num_completions: How many.
            num_prompt: Tokens of their prompt.
            seconds_left: Seconds until the deadline.
            on_evicted: Called with the error if they are evicted before any of them started.

        Raises:
            ResourceExhaustedError: There is no room for them.
        """
        self._pass_time()
        self._check_memory(place, num_prompt, seconds_left)
        more = RoomUsage(num_completions, num_completions * num_prompt, 0)
        self._make_room(place, more)
        place.num_prompt, place.on_evicted = num_prompt, on_evicted
        place.num_open = place.num_unstarted = num_completions
        self._taken.completions += num_completions
        self._places.wait(place, num_completions)
        self._taken.tokens += place.num_tokens
        self._show()

    def started(self, place: Place) -> None:
        """Record that a completion of `place` left the engine's queue.

        If it would miss its deadline, it is evicted in favour of those behind it.
        """
        if not place.num_unstarted:
            return
        self._pass_time()
        if not place.has_started and (error := self._lateness(place)):
            self._evict(place, error)
            return
        if self._is_full:
            self._forecast.started()
        place.has_started, place.started_at = True, self._updated_at
        place.num_unstarted -= 1
        self._places.wait(place, -1)
        self._taken.tokens -= place.num_prompt
        if not place.num_unstarted:
            self._taken.bytes -= place.num_bytes
            place.num_bytes = 0
        self._show()

    def finished(self, place: Place, num_output: int) -> None:
        """Record that a completion of `place` ended with `num_output` tokens."""
        self._pass_time()
        self._forecast.ran(num_output, self._updated_at - place.started_at)
        if self._is_full:
            self._forecast.freed(place.num_prompt + num_output)
        place.num_open -= 1
        self._taken.completions -= 1

    def report(self, stats: Stats) -> None:
        """Record how much KV memory a step left free."""
        self._num_free_blocks = self._limits.num_blocks - stats.used_blocks

    def _leave(self, place: Place) -> None:
        self._pass_time()
        self._places.remove(place)
        self._taken.completions -= place.num_open
        self._taken.tokens -= place.num_tokens
        self._taken.bytes -= place.num_bytes
        place.num_open = place.num_unstarted = place.num_bytes = 0
        self._show()

    def _pass_time(self) -> None:
        now = self._clock()
        if self._is_full:
            self._forecast.pass_time(now - self._updated_at)
        self._updated_at = now

    @property
    def _is_full(self) -> bool:
        """Whether some wait for others to end, and not just for the next step."""
        if not self._places.has_waiting:
            return False
        num_free = self._num_free_blocks * self._limits.block_size
        return self._taken.completions >= self._limits.max_running or self._taken.tokens > num_free

    def _check_lag(self) -> None:
        limit, lag = self._limits.max_lag, self._lag()
        if limit and lag > limit:
            raise self._shed(
                "lag", "SERVER_BUSY", f"the server is overloaded: it lags by {lag:.3g} s", lag
            )

    def _check_memory(self, place: Place, num_prompt: int, seconds_left: float) -> None:
        """Refuse a prompt for which KV memory would become free only after its deadline."""
        num_free = self._num_free_blocks * self._limits.block_size
        if self._taken.tokens + num_prompt <= num_free or not self._places.has_waiting:
            return
        missing = self._places.num_tokens_before(place) + num_prompt - num_free
        wait = self._forecast.free_seconds(missing)
        if missing > 0 and wait is not None and wait > seconds_left:
            raise self._shed(
                "memory",
                "MEMORY_UNREACHABLE",
                f"KV cache memory for the {num_prompt} tokens of the prompt becomes free in about "
                f"{wait:.3g} s, after the deadline in {seconds_left:.3g} s",
                wait - seconds_left,
            )

    def _check_time(self, place: Place, seconds_left: float) -> None:
        """Refuse a call that would miss its deadline, judging by recent ones.

        While nobody waits, all is admitted: otherwise a wrong forecast could never be corrected.
        """
        if not self._is_full:
            return
        wait = self._forecast.start_seconds(self._places.num_before(place) + 1)
        if wait is None:
            return
        seconds = CAUTION * (wait + self._forecast.run_seconds(place.max_tokens))
        if seconds > seconds_left:
            raise self._shed(
                "time",
                "DEADLINE_UNREACHABLE",
                f"the request cannot be finished within {seconds_left:.3g} s: with the requests "
                f"ahead of it, it would take about {seconds:.3g} s",
                seconds - seconds_left,
            )

    def _lateness(self, place: Place) -> DeadlineExceededError | None:
        """Return the error if `place` would miss its deadline and others wait for room to run."""
        is_crowded = self._taken.completions > self._limits.max_running
        if not is_crowded or self._places.num_waiting <= place.num_unstarted:
            return None
        seconds = self._forecast.run_seconds(place.max_tokens)
        seconds_left = place.deadline - self._updated_at
        if seconds <= seconds_left:
            return None
        self._metrics.shed.labels("late").inc()
        return DeadlineExceededError(
            f"the request waited too long: it has {max(0.0, seconds_left):.3g} s left and would "
            f"take about {seconds:.3g} s",
            reason="DEADLINE_EXCEEDED",
        )

    def _calls_to_evict(self, place: Place, more: RoomUsage) -> list[Place]:
        """Return the places to evict so that `more` fits; refuse it if that is not enough."""
        over = self._limits.over(self._taken, more)
        if over is None:
            return []
        evicted = calls_to_evict(self._places, self._limits, self._taken, place, more)
        if evicted is None:
            cause, message = over
            raise self._shed(cause, "QUEUE_FULL", message, self._drain_seconds)
        return evicted

    def _make_room(self, place: Place, more: RoomUsage) -> None:
        """Evict others so that `more` fits; refuse it if that is not enough."""
        for other in self._calls_to_evict(place, more):
            cause, message = reason(place, other)
            error = self._shed(cause, "QUEUE_FULL", message, self._drain_seconds)
            self._evict(other, error)

    def _evict(self, place: Place, error: LoramuxError) -> None:
        on_evicted = place.on_evicted
        assert on_evicted is not None
        self._leave(place)
        on_evicted(error)

    @property
    def _drain_seconds(self) -> float:
        """Seconds until all that waits has started, at the recent rate."""
        seconds = self._forecast.start_seconds(max(1, self._places.num_waiting))
        return UNKNOWN_DELAY if seconds is None else seconds

    def _shed(self, cause: str, reason: str, message: str, delay: float) -> ResourceExhaustedError:
        self._metrics.shed.labels(cause).inc()
        delay = min(max(delay, MIN_DELAY), MAX_DELAY)
        return ResourceExhaustedError(message, reason=reason, retry_delay=delay)

    def _show(self) -> None:
        self._metrics.tokens.set(self._taken.tokens)
        self._metrics.bytes.set(self._taken.bytes)
