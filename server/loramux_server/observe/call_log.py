"""The outermost interceptor: assigns request ids; logs, traces and audits calls."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from loramux_server.access.caller import Caller, Permission, caller
from loramux_server.access.rules import RULES, method_name
from loramux_server.observe.audit import Audit
from loramux_server.observe.audited_actions import AUDITED_ACTIONS
from loramux_server.observe.call_record import REQUEST_ID_KEY, CallRecord, begin
from loramux_server.observe.spans import CallSpan
from loramux_server.observe.tracing import Tracing
from loramux_server.transport.interception import around

MAX_REQUEST_ID = 128

_log = logging.getLogger("loramux.calls")
_STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}
_FAULTS = {
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"
}  # fmt: skip
"""Statuses that traces report as errors: failures of the server, not of the caller."""


class CallLog(grpc.aio.ServerInterceptor):
    """Records every call from begin to end."""

    def __init__(self, audit: Audit, *, logs_calls: bool, tracing: Tracing | None = None) -> None:
        """Initialize.

        Args:
            audit: Where audited actions are written.
            logs_calls: Whether each call gets a log line.
            tracing: Creates a span for each call; None for no traces.
        """
        self._audit = audit
        self._logs_calls = logs_calls
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        """Return the call's handler, wrapped so that the call is recorded."""
        method = method_name(str(handler_call_details.method))
        return around(
            await continuation(handler_call_details),
            lambda context: self._recorded(context, method),
        )

    @asynccontextmanager
    async def _recorded(
        self, context: "grpc.aio.ServicerContext[Any, Any]", method: str
    ) -> AsyncIterator[None]:
        """Run the block as a call of `method`, and record how it ended."""
        record = CallRecord(method, _request_id(context))
        begin(record)
        context.set_trailing_metadata(((REQUEST_ID_KEY, record.request_id),))
        started = time.monotonic()
        if self._tracing and not _is_open(method):
            metadata = cast(Iterable[tuple[str, str | bytes]], context.invocation_metadata() or ())
            record.span = self._tracing.call(method, metadata, started)
        is_cancelled = False
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            is_cancelled = True
            raise
        except grpc.aio.BaseError:
            # If we set no status, the client has disconnected.
            is_cancelled = not context.code()
            raise
        finally:
            status = "CANCELLED" if is_cancelled else _status(context)
            now = time.monotonic()
            if record.span:
                _end_span(record.span, record, status, now)
            # Except for successful health checks, which come every few seconds.
            if self._logs_calls and not (_is_open(method) and status in ("OK", "CANCELLED")):
                _write(record, status, now - started)
            if action := AUDITED_ACTIONS.get(method):
                await self._audit.record(action.name, **_audit_fields(record, status))


def _request_id(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the caller's request id if it is valid, or else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str):
            if 0 < len(value) <= MAX_REQUEST_ID and value.isascii() and value.isprintable():
                return value
            break
    return secrets.token_hex(8)


def _status(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    code = context.code() or 0
    return _STATUSES.get(code, "UNKNOWN") if isinstance(code, int) else code.name


def _is_open(method: str) -> bool:
    """Return whether `method` needs no permission, as with health checks."""
    rule = RULES.get(method)
    return rule is not None and rule.permission is Permission.NONE


def _end_span(span: CallSpan, record: CallRecord, status: str, now: float) -> None:
    who = _caller()
    fields = {
        "rpc.response.status_code": status,
        "loramux.request_id": record.request_id,
        "loramux.tenant": who.tenant if who else None,
        "loramux.reason": record.reason or None,
    }
    span.end(now, fields, error=status if status in _FAULTS else "")


def _write(record: CallRecord, status: str, seconds: float) -> None:
    who = _caller()
    fields = {
        "request_id": record.request_id,
        "trace_id": record.span.trace_id or None if record.span else None,
        "method": record.method,
        "tenant": who.tenant if who else None,
        "key": who.key_id or None if who else None,
        "status": status,
        "reason": record.reason or None,
        "seconds": round(seconds, 6),
        **{name: value for name, value in record.notes.items() if name != "target"},
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    _log.info("call", extra={"fields": fields})


def _audit_fields(record: CallRecord, status: str) -> dict[str, object]:
    who = _caller()
    return {
        "tenant": who.tenant if who else "",
        "key": who.key_id if who else "",
        "role": str(who.role) if who else "",
        "request_id": record.request_id,
        **{name: record.notes[name] for name in ("target", "adapter", "digest")
           if name in record.notes},
        "outcome": status,
        "reason": record.reason,
    }  # fmt: skip


def _caller() -> Caller | None:
    try:
        return caller()
    except LookupError:
        return None
