"""Security headers of the console, and protection of its API from other sites (CSRF)."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loramux.errors import PermissionDeniedError
from loramux.gateway.caller import caller_of
from loramux.gateway.refusal import own_refusal

_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'",
    "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    # Text from elsewhere can only become text of the page, never markup or script.
    "require-trusted-types-for 'script'", "trusted-types 'none'",
))  # fmt: skip
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_OWN_SITES = ("same-origin", "none")


class Guarded:
    """ASGI middleware that adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, add)


class OwnPage:
    """ASGI middleware that refuses requests that a browser sends for another site's page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        # Browsers send the header over HTTPS or to loopback. Otherwise JSON or a PUT would need a
        # CORS preflight, which is never granted.
        site = Headers(scope=scope).get("sec-fetch-site", "none")
        if site in _OWN_SITES:
            await self._app(scope, receive, send)
            return
        error = PermissionDeniedError(
            f"sec-fetch-site is {site[:32]!r}; only the console's own page may call this",
            reason="FOREIGN_PAGE",
        )
        await own_refusal(error, caller_of(scope))(scope, receive, send)
