"""The routes of the console."""

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from loramux.errors import LoramuxError
from loramux.gateway.backend import Backend
from loramux.gateway.caller import caller_of
from loramux.gateway.console.api import Api
from loramux.gateway.console.files import Files
from loramux.gateway.console.guard import Guarded, OwnPage
from loramux.gateway.reading import BODY_SECONDS, MAX_BODY_BYTES
from loramux.gateway.refusal import json_response, own_refusal

_HTTP = {
    404: "no such route",
    405: "the route does not support this method",
    408: f"the body or a chunk of a package took more than {BODY_SECONDS:g} s",
    413: f"the body is larger than {MAX_BODY_BYTES} bytes",
}


class Console:
    """The page and its API."""

    def __init__(self) -> None:
        """Read the files of the page.

        Raises:
            OSError: A file cannot be read.
        """
        self._files = Files()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """End the event streams, which would otherwise last as long as their pages are open."""
        self._ending.set()

    def routes(self, backend: Callable[[], Backend]) -> list[BaseRoute]:
        """Return the routes; `backend` is called for each request."""
        guarded = [Middleware(Guarded)]
        return [
            Route("/", _to_console, middleware=guarded),
            Route("/console/", _to_console, middleware=guarded),
            Route("/console", self._files.page, middleware=guarded),
            Mount("/console/api", app=_api(Api(backend, self._ending)), middleware=guarded),
            Route("/console/{name}", self._files.file, middleware=guarded),
        ]


def _api(api: Api) -> Starlette:
    app = Starlette(
        routes=[
            Route("/server", api.server),
            Route("/live", api.live),
            Route("/aliases", api.aliases),
            Route("/aliases/moves", api.moves),
            Route("/aliases/set", api.set_alias, methods=["POST"]),
            Route("/aliases/delete", api.delete_alias, methods=["POST"]),
            Route("/aliases/roll-back", api.roll_back, methods=["POST"]),
            Route("/adapters/pin", api.pin, methods=["POST"]),
            Route("/adapters/unpin", api.unpin, methods=["POST"]),
            Route("/adapters/delete", api.delete, methods=["POST"]),
            Route("/uploads/start", api.start_upload, methods=["POST"]),
            Route("/uploads/chunks", api.send_chunks, methods=["PUT"]),
            Route("/uploads/finish", api.finish_upload, methods=["POST"]),
        ],
        exception_handlers={
            LoramuxError: _refused,
            HTTPException: _wrong_http,
            ClientDisconnect: _gone,
        },
        middleware=[Middleware(OwnPage)],
    )
    app.router.redirect_slashes = False
    return app


async def _to_console(request: Request) -> Response:
    """Redirect to the console; relative, as a proxy may serve the gateway below a path."""
    there = "../console" if request.url.path.endswith("/console/") else "console"
    return Response(status_code=307, headers={"location": there})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoramuxError)
    answer = own_refusal(error, caller_of(request.scope))
    if request.method == "PUT":  # the rest of the body is not read
        answer.headers["connection"] = "close"
    return answer


async def _wrong_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    fields = {"status": "", "reason": "", "field": ""}
    fields["message"] = _HTTP.get(error.status_code, error.detail)
    headers = caller_of(request.scope).returned | {"connection": "close"}
    return json_response({"error": fields}, headers, error.status_code)


async def _gone(request: Request, error: Exception) -> Response:
    """Return a response for a caller who has disconnected."""
    return Response(status_code=499)
