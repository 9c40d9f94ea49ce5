"""What a page is told for as long as somebody looks at it.

Changes of adapters come as the server tells of them. It tells nothing of counts, which change with
every request: those of adapters in memory, and the load, are asked for again and again, as
`loramux top` does, and told where they are others. An adapter on disk has none that change.
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
from loramux.gateway.refusal import told
from loramux.types import Adapter, AdapterStatus, ServerLoad

INTERVAL = 2.0
"""Seconds between looks at the load."""

Tell = Callable[[str, object], Awaitable[None]]
"""Sends an event: its name, and what it says."""


class Live:
    """The events for one page."""

    def __init__(self, client: AsyncClient, ending: asyncio.Event, caller: Caller) -> None:
        """Prepare; the events end when `ending` is set."""
        self._client = client
        self._ending = ending
        self._caller = caller

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with `change`s, `load`s, and at the end perhaps an `error`."""
        headers = self._caller.returned | EVENTS
        await send({
            "type": "http.response.start",
            "status": 200,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        })  # fmt: skip

        async def tell(name: str, what: object) -> None:
            body = event(what, name)
            await send({"type": "http.response.body", "body": body, "more_body": True})

        sources: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(source)
            for source in (self._changes(tell), self._loads(tell), self._ending.wait())
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
                await tell("error", told(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _changes(self, tell: Tell) -> None:
        """Tell of what is registered, and then of every change."""
        changes: Any = self._client.adapters.watch(include_existing=True)
        async with aclosing(changes):
            async for change in changes:
                await tell("change", change)

    async def _loads(self, tell: Tell) -> None:
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
                except PermissionDeniedError as error:  # what all tenants do is not for everybody
                    refused = told(error)
            rates = rates_of(before, load) if before and load else None
            await tell(
                "load", {"adapters": adapters, "load": load, "rates": rates, "refused": refused}
            )
            before = load
            await asyncio.sleep(INTERVAL)

    async def _in_memory(self) -> list[Adapter]:
        adapters = self._client.adapters
        found = await adapters.list(tier="device", all_versions=True)
        return found + await adapters.list(tier="host", all_versions=True)
