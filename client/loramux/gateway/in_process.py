"""The gateway in process, without a socket: requests are passed to the ASGI application."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from starlette.applications import Starlette
from starlette.types import Message

from loramux.gateway.app import make_app
from loramux.gateway.backend import Backend


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class InProcessGateway:
    """Answers requests in this process. For one event loop."""

    def __init__(self, app: Starlette, key: str) -> None:
        self._app = app
        self._key = key

    @classmethod
    @asynccontextmanager
    async def opened(cls, open_backend: Callable[[], Backend], key: str) -> AsyncIterator[Self]:
        """Stay connected for the block; `key` is sent to the server, unless it is empty."""
        app = make_app(open_backend, hosts=None)
        async with app.router.lifespan_context(app):
            yield cls(app, key)

    async def post(self, url: str, body: bytes) -> Reply:
        """Return the reply to a POST of `body`, which is JSON, to `url`."""
        headers = [(b"content-type", b"application/json")]
        if self._key:
            headers.append((b"authorization", f"Bearer {self._key}".encode()))
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1", "method": "POST", "scheme": "http", "path": url,
            "raw_path": url.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": None, "server": None,
        }  # fmt: skip
        given, sent = iter([{"type": "http.request", "body": body, "more_body": False}]), []

        async def receive() -> Message:
            for message in given:
                return message
            # The caller never disconnects.
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            await self._app(scope, receive, send)
        except Exception:  # a bug; if a response was sent, it reports it
            if not sent:
                raise
        start, *parts = sent
        return Reply(
            start["status"],
            {name.decode(): value.decode() for name, value in start["headers"]},
            b"".join(part.get("body", b"") for part in parts),
        )
