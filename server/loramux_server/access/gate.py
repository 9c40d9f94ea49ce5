"""The gate that every call passes before its handler runs: who is it, and may they?"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from loramux.errors import LoramuxError, PermissionDeniedError
from loramux_server.access.authenticator import Authenticator
from loramux_server.access.caller import Caller, Permission, enter
from loramux_server.access.rules import RULES, method_name
from loramux_server.access.together import enter_together
from loramux_server.transport.interception import Handler, around
from loramux_server.transport.rpc import Context, abort


class Gate(grpc.aio.ServerInterceptor):
    """Lets calls through whose callers may make them, and ends those of callers who may not now."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._running: defaultdict[Caller, set[asyncio.Task[Any]]] = defaultdict(set)
        """Caller -> the tasks of its calls."""
        self._shut_out: dict[asyncio.Task[Any], LoramuxError] = {}
        """Tasks that end because their caller may not call any more -> why."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler of a call, behind the gate."""
        method = method_name(str(handler_call_details.method))
        return around(
            await continuation(handler_call_details),
            lambda context: self._admitted(context, method),
        )

    def shut_out(self) -> None:
        """End the calls whose callers may not call any more."""
        for caller, tasks in self._running.items():
            if why := self._authenticator.refusal(caller):
                for task in tasks:
                    self._shut_out[task] = why
                    task.cancel()

    @asynccontextmanager
    async def _admitted(self, context: Context, method: str) -> AsyncIterator[None]:
        """Run the block as the caller that `context` tells of, or end the call."""
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
            why = self._shut_out.get(task)
            if why is None:
                raise
            # gRPC would leave the other side waiting for a status.
            task.uncancel()
            await abort(context, why, method)
        finally:
            self._shut_out.pop(task, None)
            self._running[who].discard(task)
            if not self._running[who]:
                del self._running[who]

    def _caller(self, context: Context, method: str) -> Caller | None:
        """Return who makes the call, from now on the caller, or None where that does not matter.

        Raises:
            UnauthenticatedError: The caller is not known.
            PermissionDeniedError: The caller may not call this, or not at all at present.
        """
        rule = RULES.get(method)
        if rule and rule.permission is Permission.NONE:
            return None
        metadata = cast(Sequence[tuple[str, str | bytes]], context.invocation_metadata() or ())
        who = self._authenticator.identify(metadata, context.auth_context)
        enter_together(metadata)
        enter(who)  # before it is refused, so that the log tells whose call it was
        if why := self._authenticator.refusal(who):
            raise why
        if rule is None or not who.may(rule.permission):
            raise PermissionDeniedError(
                f"a caller with role {str(who.role)!r} may not call {method}",
                reason="PERMISSION_DENIED",
            )
        return who
