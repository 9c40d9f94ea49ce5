"""Retry policy: which failed calls are retried, at another server or later, and how often.

The rules are gRPC's for retries on one channel, applied to calls that may move to another channel.
Two differ: after its first failure, a call does not wait if another server is available; and a call
that a server has no room for is tried at each server that may have room.
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
"""Reasons of RESOURCE_EXHAUSTED that may not hold for another server; not a quota."""
_BUSY = {"QUEUE_FULL", "SERVER_BUSY"}
"""Those of them that hold for other calls, too; the rest may depend on the call."""
_MAX_AVOIDED = 1.0
"""Maximum seconds for which a server that refused a call is avoided, if there are others."""
_MIN_AVOIDED = 0.1


class Budget:
    """Retry budget of all calls of a client; thread-safe.

    Refusals by full servers have a budget of their own, so that they do not use up the one for
    unavailable servers.
    """

    def __init__(self) -> None:
        self._tokens = {is_full: float(RETRY_TOKENS) for is_full in (False, True)}
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Record a success."""
        with self._lock:
            for is_full, left in self._tokens.items():
                self._tokens[is_full] = min(RETRY_TOKENS, left + RETRY_RATIO)

    def failed(self, *, is_full: bool) -> bool:
        """Record a failure, by a full or an unavailable server.

        Returns:
            Whether another attempt is allowed.
        """
        with self._lock:
            left = self._tokens[is_full] = max(0.0, self._tokens[is_full] - 1)
            return left > RETRY_TOKENS / 2


class Attempts:
    """The attempts of one call."""

    def __init__(self, budget: Budget, deadline: float | None) -> None:
        """Start without attempts; `deadline` is on the monotonic clock."""
        self._budget = budget
        self._deadline = deadline
        self._made = 0

    def delay(self, error: grpc.RpcError, *, has_others: bool, now: float) -> float | None:
        """Return the seconds until the next attempt; None if there is none.

        Args:
            error: How the last attempt ended.
            has_others: Whether a healthy server has not been tried yet.
            now: Time on the monotonic clock.
        """
        self._made += 1
        is_full = is_overloaded(error)
        if not (is_full or is_unavailable(error)):
            return None
        if is_full and not has_others:
            return None  # the caller gets the retry delay
        pushback = _pushback(error)
        is_over = self._made >= MAX_ATTEMPTS or (pushback is not None and pushback < 0)
        if not self._budget.failed(is_full=is_full) or is_over:
            return None
        # Only once for an unavailable server: the call may have crashed the engine, and must not
        # crash several at a time.
        if has_others and (is_full or self._made == 1):
            return 0.0
        seconds = min(INITIAL_BACKOFF * BACKOFF_MULTIPLIER ** (self._made - 1), MAX_BACKOFF)
        seconds = seconds * random.uniform(0.8, 1.2) if pushback is None else pushback
        if self._deadline is not None and now + seconds >= self._deadline:
            return None
        return seconds

    def remaining(self, now: float) -> float | None:
        """Return the seconds until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - now)

    def succeeded(self) -> None:
        """Record that the answer, or its first part, arrived."""
        self._budget.succeeded()


def is_unavailable(error: grpc.RpcError) -> bool:
    """Return whether the server was unreachable or unavailable."""
    return _call(error).code() in RETRYABLE


def is_overloaded(error: grpc.RpcError) -> bool:
    """Return whether the server had no room for the call."""
    return _is_refused(error, _FULL)


def seconds_avoided(error: grpc.RpcError) -> float:
    """Return for how long to avoid the server that ended a call with `error`; 0 for not at all."""
    if not (is_unavailable(error) or _is_refused(error, _BUSY)):
        return 0.0
    return min(max(error_of(error).retry_delay or 0.0, _MIN_AVOIDED), _MAX_AVOIDED)


def _is_refused(error: grpc.RpcError, reasons: set[str]) -> bool:
    return (
        _call(error).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        and error_of(error).reason in reasons
    )


def _pushback(error: grpc.RpcError) -> float | None:
    """Return the server's retry delay in seconds, negative for no retry; None if not given."""
    metadata: Iterable[tuple[str, str | bytes]] = _call(error).trailing_metadata() or ()
    for key, value in metadata:
        if key == _PUSHBACK_KEY:
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            return int(text) / 1000 if text.isdecimal() else -1.0
    return None


def _call(error: grpc.RpcError) -> grpc.Call | grpc.aio.AioRpcError:
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    return error
