"""What a connection of HTTP may send, how long it may take, and how many there may be."""

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
    """The settings of every connection. Times are in seconds."""

    max_head: int = 64 << 10
    """Bytes of what precedes a body, and of what may follow one."""
    max_fields: int = 100
    """Headers of a request, and as many after its body."""
    max_ahead: int = 100
    """Requests that wait on a connection for the answer to the one before."""
    head: float = 10.0
    """Time for the first request to begin, and for the head of any to be whole."""
    unread: float = 30.0
    """How long a caller may leave an answer unread: longer than the server waits by default."""
    max_connections: int = 4096
    """Connections at once; others are closed at once."""


class _TooLargeError(Exception):
    """The head of a request is larger than allowed; ends the parsing of it."""


class Connection(HttpToolsProtocol):
    """Speaks HTTP with a caller, as uvicorn does, which by itself has none of the limits."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        limits: Limits,
        rejected: Callable[[int], None] | None = None,
        **more: Any,  # noqa: ANN401
    ) -> None:
        """Prepare; all but `limits`, and who is told of answers without a route, is uvicorn's."""
        super().__init__(*arguments, **more)
        self._limits = limits
        self._rejected = rejected
        self._num_stuck = 0
        """Bytes since the parser last had a head, a piece of a body or an end."""
        self._is_within = self._is_in_head = False
        """Of a request."""
        self._size = self._num_fields = 0
        """Of the head, or of the fields after a body."""
        self._is_too_large = False
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "there are too many connections; try again", "too_many_connections")
        else:
            self._reading = self._later(self._limits.head, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Have no timer run any more."""
        self._unset_keepalive_if_required()
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, as far as it is not too much."""
        self._num_stuck += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_stuck > self._limits.max_head:
            self._refuse_large()
        else:
            self._await_request()

    def on_message_begin(self) -> None:
        """Count anew."""
        super().on_message_begin()
        self._is_within = self._is_in_head = True
        self._size = self._num_fields = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of it."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes after a body is read by nobody."""
        self._num_fields += 1
        self._count(len(name) + len(value))
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer, or let it wait."""
        if len(self.pipeline) >= self._limits.max_ahead:
            raise _TooLargeError
        self._num_stuck = self._size = self._num_fields = 0
        self._is_in_head = False
        self._stop_reading_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of it."""
        self._num_stuck = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Be ready for the next."""
        self._num_stuck = 0
        self._is_within = False
        self._stop_reading_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next, unless it was the last."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        else:
            self._await_request()

    def send_400_response(self, msg: str) -> None:
        """Say that the parser gave up."""
        if self._is_too_large:
            self._refuse_large()
        else:
            self._refuse(400, "the request is no HTTP/1.1", "malformed_request")

    def pause_writing(self) -> None:
        """Wait for the caller to read, for a while."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self._later(self._limits.unread, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on; the caller read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_writing_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close what is used no more."""
        self._close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        """Have a timer run, unless there is a request to answer."""
        if self._is_answering or self._reading is not None:
            return
        # uvicorn's own starts with the end of an answer only, and ends with any data.
        self._unset_keepalive_if_required()
        if self._is_within:  # the next one, or what is left of one that was answered
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
            f"the head of the request has more than {self._limits.max_head} bytes or "
            f"{self._limits.max_fields} headers",
            "head_too_large",
        )

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in place of the application, and close."""
        if self._rejected:
            self._rejected(status)
        if self._is_answering:
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()  # nothing can be said in the middle of an answer
                return
            self.cycle.disconnected = True  # or it would answer as well
            self.cycle.message_event.set()
        answer = plain_refusal(status, message, code, _NOBODY)
        answer.headers["connection"] = "close"
        named = [*self.server_state.default_headers, *answer.raw_headers]
        fields = [name + b": " + value + b"\r\n" for name, value in named]
        self.transport.write(b"".join([STATUS_LINE[status], *fields, b"\r\n", bytes(answer.body)]))
        self._close()

    def _close(self) -> None:
        """Close when what was written is read, or has not been for too long."""
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
