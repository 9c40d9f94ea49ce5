"""The event stream of an open page.

Changes of adapters are forwarded from the server's watch. That does not include request counts, so
the status of adapters in memory, and the load, are polled, as `loramux top` does; of adapters, only
changes are sent. Counts of an adapter on disk do not change.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from loramux._rates import rates_of
from loramux.aio import AsyncClient
from loramux.errors import LoramuxError, PermissionDeniedError
from loramux.gateway.caller import Caller
from loramux.gateway.events import EVENTS, event
from loramux.gateway.refusal import error_fields
from loramux.types import Adapter, AdapterStatus, ServerLoad

INTERVAL = 2.0
"""Seconds between polls."""

SendEvent = Callable[[str, object], Awaitable[None]]
"""Sends an event: its name and its data."""


class Live:
    """The event stream of one page."""

    def __init__(self, client: AsyncClient, ending: asyncio.Event, caller: Caller) -> None:
        """Initialize; the stream ends when `ending` is set."""
        self._client = client
        self._ending = ending
        self._caller = caller

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with `change` and `load` events, and a last `error` event on failure."""
        headers = self._caller.returned | EVENTS
        await send({
            "type": "http.response.start",
            "status": 200,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        })  # fmt: skip

        async def send_event(name: str, what: object) -> None:
            body = event(what, name)
            await send({"type": "http.response.body", "body": body, "more_body": True})

        sources: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(source)
            for source in (self._changes(send_event), self._loads(send_event), self._ending.wait())
        ]
        try:
            done, _ = await asyncio.wait(sources, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for source in sources:
                source.cancel()
            await asyncio.gather(*sources, return_exceptions=True)
        for source in done:
            try:
                source.result()
            except LoramuxError as error:
                await send_event("error", error_fields(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _changes(self, send_event: SendEvent) -> None:
        """Send the registered adapters, and then every change."""
        changes: Any = self._client.adapters.watch(include_existing=True)
        async with aclosing(changes):
            async for change in changes:
                await send_event("change", change)

    async def _loads(self, send_event: SendEvent) -> None:
        before: ServerLoad | None = None
        refused: dict[str, object] | None = None
        known: dict[str, AdapterStatus] = {}
        while True:
            found = {adapter.reference: adapter for adapter in await self._in_memory()}
            adapters = [each for name, each in found.items() if known.get(name) != each.status]
            known = {name: adapter.status for name, adapter in found.items()}
            load = None
            if refused is None:
                try:
                    load = await self._client.load()
                except PermissionDeniedError as error:  # the load of all tenants needs a role
                    refused = error_fields(error)
            rates = rates_of(before, load) if before and load else None
            await send_event(
                "load", {"adapters": adapters, "load": load, "rates": rates, "refused": refused}
            )
            before = load
            await asyncio.sleep(INTERVAL)

    async def _in_memory(self) -> list[Adapter]:
        adapters = self._client.adapters
        found = await adapters.list(tier="device", all_versions=True)
        return found + await adapters.list(tier="host", all_versions=True)
