"""Counts, times and logs the requests of an application."""

import json
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loramux.gateway.caller import caller_of
from loramux.gateway.observe.metrics import GatewayMetrics
from loramux.gateway.observe.templates import Templates

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_OTHER = "other"
_GONE = 499
"""nginx's status for a client that disconnected before the response began."""
_QUIET = ("/health", 200)
"""Route and status that are not logged: health checks come every few seconds."""

_log = logging.getLogger(__name__)


class ObservabilityMiddleware:
    """ASGI middleware, outside all others, that records the requests of an application."""

    def __init__(
        self,
        app: ASGIApp,
        templates: Templates,
        *,
        metrics: GatewayMetrics | None,
        log_format: str | None,
    ) -> None:
        """Initialize.

        Args:
            app: The wrapped application.
            templates: The templates of its routes.
            metrics: Where requests are counted; None for no metrics.
            log_format: `text` or `json` for a log line per request; None for none.
        """
        self._app = app
        self._templates = templates
        self._metrics = metrics
        self._log_format = log_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Exchange(receive, send)
        status = _GONE
        if self._metrics:
            self._metrics.in_progress.inc()
        try:
            await self._app(scope, seen.receive, seen.send)
        except Exception:
            status = 500
            raise
        finally:
            self._record(scope, seen, seen.status or status, time.monotonic() - seen.started)

    def _record(self, scope: Scope, seen: "_Exchange", status: int, seconds: float) -> None:
        route = self._templates.of(scope["path"])
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        if self._metrics:
            self._metrics.in_progress.dec()
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.duration.labels(route).observe(seconds)
            if seen.is_stream and seen.first_byte is not None:
                self._metrics.first_byte.labels(route).observe(seen.first_byte)
        if self._log_format is None or (route, status) == _QUIET:
            return
        fields: dict[str, object] = {
            "request_id": caller_of(scope).request_id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
        }
        if seen.is_stream and seen.first_byte is not None:
            fields["first_byte_seconds"] = round(seen.first_byte, 6)
        fields |= {"request_bytes": seen.num_received, "response_bytes": seen.num_sent}
        if not seen.is_complete:
            fields["incomplete"] = True
        if self._log_format == "json":
            _log.info("request", extra={"fields": fields})
        else:
            # Encoded as JSON, since the caller chooses the id, which could imitate another field.
            _log.info(" ".join(f"{name}={json.dumps(value)}" for name, value in fields.items()))


class _Exchange:
    """One request and its response, recorded as they pass."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.started = time.monotonic()
        self.status = 0
        """0 until the response begins."""
        self.is_stream = False
        self.first_byte: float | None = None
        """Seconds until the first byte of the response body."""
        self.num_received = self.num_sent = 0
        """Bytes of the request's and the response's body."""
        self.is_complete = False
        """Whether the whole response was sent."""

    async def receive(self) -> Message:
        """Forward a message from the caller."""
        message = await self._receive()
        self.num_received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Forward a message to the caller."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
            await self._send(message)
            return
        body = message.get("body", b"")
        if self.first_byte is None and body:
            self.first_byte = time.monotonic() - self.started
        await self._send(message)
        self.num_sent += len(body)
        self.is_complete = not message.get("more_body", False)
