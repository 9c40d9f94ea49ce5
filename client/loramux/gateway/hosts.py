"""Which host names a request may use, against DNS rebinding.

A web page can point its own domain at loopback, so that the browser lets it call a gateway on the
same machine and read the answers. `Host` is then the page's domain.
"""

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from loramux._access import is_local
from loramux.errors import InvalidArgumentError
from loramux.gateway.caller import caller_of
from loramux.gateway.refusal import plain_refusal

_HOST = re.compile(r"\[([0-9a-f:.]+)\](?::\d*)?|([^\s:/@\[\]]+)(?::\d*)?")


class KnownHosts:
    """ASGI middleware that accepts only requests to known host names."""

    def __init__(self, app: ASGIApp, more: Collection[str]) -> None:
        """Initialize.

        Args:
            app: The wrapped application.
            more: Names and addresses, as `checked` returns them, in addition to loopback.
        """
        self._app = app
        self._more = frozenset(more)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "http":
            # Browsers always send one; only old probes send none.
            for host in Headers(scope=scope).getlist("host"):
                if not self._knows(host):
                    await _refusal(host, scope)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        found = _HOST.fullmatch(host.lower())
        name = (found[1] or found[2]).removesuffix(".") if found else ""
        return name in self._more or (name != "" and is_local(f"[{name}]:0"))


def _refusal(host: str, scope: Scope) -> Response:
    message = f"host is {host[:255]!r}; to allow it, start the gateway with --allowed-host"
    return plain_refusal(421, message, "unknown_host", caller_of(scope))


def checked(name: str) -> str:
    """Return `name` of `--allowed-host`, normalized for comparison.

    Raises:
        InvalidArgumentError: It cannot be a host name or address.
    """
    plain = name.lower().strip("[]").removesuffix(".")
    if not (_HOST.fullmatch(f"[{plain}]") or re.fullmatch(r"[^\s:/@\[\]]+", plain)):
        raise InvalidArgumentError(
            f"--allowed-host {name!r}: expected a host name or address without scheme and port"
        )
    return plain
