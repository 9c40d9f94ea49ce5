"""Limits of HTTP connections: size, time and number."""

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from loramux.gateway.caller import Caller
from loramux.gateway.refusal import plain_refusal

_NOBODY = Caller("", "", (), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of every connection. Times are in seconds."""

    max_head: int = 64 << 10
    """Bytes of a request's head, and of its trailers."""
    max_fields: int = 100
    """Headers of a request; its trailers may be as many again."""
    max_ahead: int = 100
    """Pipelined requests that may wait on a connection."""
    head: float = 10.0
    """Time for the first request to begin, and for any request's head to be complete."""
    unread: float = 30.0
    """How long a caller may leave an answer unread; longer than the server's own default."""
    max_connections: int = 4096
    """Simultaneous connections; further ones are refused and closed."""


class _TooLargeError(Exception):
    """The head of a request exceeds a limit; stops the parser."""


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits, of which it has none itself."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        limits: Limits,
        rejected: Callable[[int], None] | None = None,
        **more: Any,  # noqa: ANN401
    ) -> None:
        """Initialize; `rejected` is called with the status of answers that reach no route.

        All other arguments are uvicorn's.
        """
        super().__init__(*arguments, **more)
        self._limits = limits
        self._rejected = rejected
        self._num_stuck = 0
        """Bytes since the parser last completed a head, a part of a body or a request."""
        self._is_within = self._is_in_head = False
        """Whether the parser is inside a request, and inside its head."""
        self._size = self._num_fields = 0
        """Bytes and fields of the current head or trailers."""
        self._is_too_large = False
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request, or refuse if there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "too many connections; try again", "too_many_connections")
        else:
            self._reading = self._later(self._limits.head, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._unset_keepalive_if_required()
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data`; refuse a head that grows too large."""
        self._num_stuck += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_stuck > self._limits.max_head:
            self._refuse_large()
        else:
            self._await_request()

    def on_message_begin(self) -> None:
        """Reset the counters."""
        super().on_message_begin()
        self._is_within = self._is_in_head = True
        self._size = self._num_fields = 0

    def on_url(self, url: bytes) -> None:
        """Count and pass on a part of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header and pass it on; trailers are dropped."""
        self._num_fields += 1
        self._count(len(name) + len(value))
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind the current one."""
        if len(self.pipeline) >= self._limits.max_ahead:
            raise _TooLargeError
        self._num_stuck = self._size = self._num_fields = 0
        self._is_in_head = False
        self._stop_reading_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._num_stuck = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Mark the request as completely received."""
        self._num_stuck = 0
        self._is_within = False
        self._stop_reading_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or finish closing the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        else:
            self._await_request()

    def send_400_response(self, msg: str) -> None:
        """Refuse the request when the parser fails."""
        if self._is_too_large:
            self._refuse_large()
        else:
            self._refuse(400, "the request is not valid HTTP/1.1", "malformed_request")

    def pause_writing(self) -> None:
        """Pause, and abort the connection if the caller does not read for too long."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self._later(self._limits.unread, self.transport.abort)

    def resume_writing(self) -> None:
        """Resume after the caller has read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_writing_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        self._close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        """Start a timer for the next request, unless one is being answered."""
        if self._is_answering or self._reading is not None:
            return
        # uvicorn's own keep-alive timer starts only after an answer and stops with any data.
        self._unset_keepalive_if_required()
        if self._is_within:  # in the next request, or the rest of one that was already answered
            self._reading = self._later(self._limits.head, self._close)
        else:
            self.timeout_keep_alive_task = self._later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.max_head or self._num_fields > self._limits.max_fields:
            self._is_too_large = True
            raise _TooLargeError

    def _refuse_large(self) -> None:
        self._refuse(
            431,
            f"the request head has more than {self._limits.max_head} bytes or "
            f"{self._limits.max_fields} headers",
            "head_too_large",
        )

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer instead of the application, and close."""
        if self._rejected:
            self._rejected(status)
        if self._is_answering:
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()  # an error cannot be sent in the middle of an answer
                return
            self.cycle.disconnected = True  # otherwise the application would answer, too
            self.cycle.message_event.set()
        answer = plain_refusal(status, message, code, _NOBODY)
        answer.headers["connection"] = "close"
        named = [*self.server_state.default_headers, *answer.raw_headers]
        fields = [name + b": " + value + b"\r\n" for name, value in named]
        self.transport.write(b"".join([STATUS_LINE[status], *fields, b"\r\n", bytes(answer.body)]))
        self._close()

    def _close(self) -> None:
        """Close once the write buffer is flushed; abort if that takes too long."""
        self.transport.close()
        if self._writing is None:
            self._writing = self._later(self._limits.unread, self.transport.abort)

    def _later(self, seconds: float, what: Callable[[], object]) -> TimerHandle:
        return self.loop.call_later(seconds, what)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
