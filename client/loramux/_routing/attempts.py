"""Which failed calls are made again at another server or later, and how many at most.

The rules are those by which gRPC makes calls again on one channel, for calls that may go to another
channel. But a call does not wait after its first failure where another server is there, and one for
which a server has no room is tried at each that may have some.
"""

import random
import threading
from collections.abc import Iterable

import grpc

from loramux._channel import (
    BACKOFF_MULTIPLIER,
    INITIAL_BACKOFF,
    MAX_ATTEMPTS,
    MAX_BACKOFF,
    RETRY_RATIO,
    RETRY_TOKENS,
    RETRYABLE,
)
from loramux._wire import error_of

_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_FULL = {"QUEUE_FULL", "SERVER_BUSY", "MEMORY_UNREACHABLE", "DEADLINE_UNREACHABLE"}
"""Reasons of RESOURCE_EXHAUSTED that another server may not have. A quota is none of them."""
_BUSY = {"QUEUE_FULL", "SERVER_BUSY"}
"""Those that other calls would have as well; the rest may be of the one call."""
_MAX_AVOIDED = 1.0
"""Seconds without calls for a server that refused one, where others are there."""
_MIN_AVOIDED = 0.1


class Budget:
    """How many calls may be made again, for all calls of a client; threads may share it.

    What is full is there: to be refused for room takes nothing from what calls may cost that find
    a server away, and has a budget of its own.
    """

    def __init__(self) -> None:
        self._tokens = {is_full: float(RETRY_TOKENS) for is_full in (False, True)}
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Note a call that was answered."""
        with self._lock:
            for is_full, left in self._tokens.items():
                self._tokens[is_full] = min(RETRY_TOKENS, left + RETRY_RATIO)

    def failed(self, *, is_full: bool) -> bool:
        """Note a failure, by a server that is full or away.

        Returns:
            Whether there may be another attempt.
        """
        with self._lock:
            left = self._tokens[is_full] = max(0.0, self._tokens[is_full] - 1)
            return left > RETRY_TOKENS / 2


class Attempts:
    """The attempts of one call."""

    def __init__(self, budget: Budget, deadline: float | None) -> None:
        """Count from one; `deadline` is of the monotonic clock."""
        self._budget = budget
        self._deadline = deadline
        self._made = 0

    def delay(self, error: grpc.RpcError, *, has_others: bool, now: float) -> float | None:
        """Return the seconds until the next attempt; None where there is to be none.

        Args:
            error: How the last one ended.
            has_others: Whether a server that may answer was not asked yet.
            now: Of the monotonic clock.
        """
        self._made += 1
        is_full = refuses_for_room(error)
        if not (is_full or is_away(error)):
            return None
        if is_full and not has_others:
            return None  # who asked is told when to come again
        pushback = _pushback(error)
        is_over = self._made >= MAX_ATTEMPTS or (pushback is not None and pushback < 0)
        if not self._budget.failed(is_full=is_full) or is_over:
            return None
        # Only once where the engine may have died of the call: it is not to end several at a time.
        if has_others and (is_full or self._made == 1):
            return 0.0
        seconds = min(INITIAL_BACKOFF * BACKOFF_MULTIPLIER ** (self._made - 1), MAX_BACKOFF)
        seconds = seconds * random.uniform(0.8, 1.2) if pushback is None else pushback
        if self._deadline is not None and now + seconds >= self._deadline:
            return None
        return seconds

    def remaining(self, now: float) -> float | None:
        """Return the seconds that are left; None for no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - now)

    def succeeded(self) -> None:
        """Note the answer, or its beginning."""
        self._budget.succeeded()


def is_away(error: grpc.RpcError) -> bool:
    """Return whether the server was not there, or said so."""
    return _call(error).code() in RETRYABLE


def refuses_for_room(error: grpc.RpcError) -> bool:
    """Return whether the server has too much to do for one call more."""
    return _is_refused(error, _FULL)


def seconds_avoided(error: grpc.RpcError) -> float:
    """Return how long the server that ended a call with `error` gets no others; 0 for no matter."""
    if not (is_away(error) or _is_refused(error, _BUSY)):
        return 0.0
    return min(max(error_of(error).retry_delay or 0.0, _MIN_AVOIDED), _MAX_AVOIDED)


def _is_refused(error: grpc.RpcError, reasons: set[str]) -> bool:
    return (
        _call(error).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        and error_of(error).reason in reasons
    )


def _pushback(error: grpc.RpcError) -> float | None:
    """Return the seconds that the server wants, < 0 for never; None where it does not say."""
    metadata: Iterable[tuple[str, str | bytes]] = _call(error).trailing_metadata() or ()
    for key, value in metadata:
        if key == _PUSHBACK_KEY:
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            return int(text) / 1000 if text.isdecimal() else -1.0
    return None


def _call(error: grpc.RpcError) -> grpc.Call | grpc.aio.AioRpcError:
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    return error
