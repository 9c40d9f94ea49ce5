"""The gate that every call passes before its handler: authentication and authorization."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from loramux.errors import LoramuxError, PermissionDeniedError
from loramux_server.access.authenticator import Authenticator
from loramux_server.access.caller import Caller, Permission, enter
from loramux_server.access.num_calls import read_num_calls
from loramux_server.access.rules import RULES, method_name
from loramux_server.transport.interception import Handler, around
from loramux_server.transport.rpc import Context, abort


class Gate(grpc.aio.ServerInterceptor):
    """Admits calls that their callers may make, and ends running ones that lose that right."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._running: defaultdict[Caller, set[asyncio.Task[Any]]] = defaultdict(set)
        """Caller -> the tasks of its calls."""
        self._revoked: dict[asyncio.Task[Any], LoramuxError] = {}
        """Tasks that were cancelled because their caller lost access -> the error."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler of a call, wrapped in the check."""
        method = method_name(str(handler_call_details.method))
        return around(
            await continuation(handler_call_details),
            lambda context: self._admitted(context, method),
        )

    def cancel_revoked(self) -> None:
        """End the running calls whose callers have lost access."""
        for caller, tasks in self._running.items():
            if why := self._authenticator.refusal(caller):
                # A second cancellation would interrupt the cleanup that the first one started.
                for task in tasks - self._revoked.keys():
                    self._revoked[task] = why
                    task.cancel()

    @asynccontextmanager
    async def _admitted(self, context: Context, method: str) -> AsyncIterator[None]:
        """Run the block as the caller identified from `context`, or abort the call."""
        try:
            who = self._caller(context, method)
        except LoramuxError as error:
            await abort(context, error, method)
        if who is None:
            yield
            return
        task = asyncio.current_task()
        assert task is not None
        self._running[who].add(task)
        try:
            yield
        except asyncio.CancelledError:
            why = self._revoked.get(task)
            if why is None:
                raise
            # If this only raised, gRPC would send no status and the client would wait.
            task.uncancel()
            await abort(context, why, method)
        finally:
            self._revoked.pop(task, None)
            self._running[who].discard(task)
            if not self._running[who]:
                del self._running[who]

    def _caller(self, context: Context, method: str) -> Caller | None:
        """Return the caller, set for this task, or None if the method needs no authentication.

        Raises:
            UnauthenticatedError: The caller cannot be authenticated.
            PermissionDeniedError: The caller may not call this method, or its tenant is disabled.
        """
        rule = RULES.get(method)
        if rule and rule.permission is Permission.NONE:
            return None
        metadata = cast(Sequence[tuple[str, str | bytes]], context.invocation_metadata() or ())
        who = self._authenticator.identify(metadata, context.auth_context)
        read_num_calls(metadata)
        enter(who)  # before a refusal, so that the log names the caller
        if why := self._authenticator.refusal(who):
            raise why
        if rule is None or not who.may(rule.permission):
            raise PermissionDeniedError(
                f"a caller with role {str(who.role)!r} may not call {method}",
                reason="PERMISSION_DENIED",
            )
        return who
