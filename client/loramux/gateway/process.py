"""The process of the gateway: its socket, its TLS, its start and its end."""

import asyncio
import resource
import signal
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn

from loramux._access import is_local
from loramux._channel import Routing
from loramux.errors import FailedPreconditionError, InvalidArgumentError, UnauthenticatedError
from loramux.gateway.app import make_app
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.certificate import REFRESH_SECONDS, Certificate
from loramux.gateway.connection import Connection, Limits
from loramux.gateway.console import Console
from loramux.gateway.hosts import checked
from loramux.gateway.lora_root import LoraRoot

_KEEP_ALIVE_SECONDS = 75
"""How long a connection without requests is kept: longer than a proxy keeps one, or than OpenAI's
client does, which would meet the end of it otherwise."""
_BACKLOG = 2048
_SEND_BYTES = 128 << 10
"""What the system may hold for a caller who does not read; by itself it would be megabytes."""

_FILES = 128
"""How many files are open beside the connections of callers, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `loramux gateway` can be told. Times are in seconds."""

    targets: tuple[str, ...]
    """Servers that serve the same."""
    host: str
    port: int
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool
    allowed_hosts: tuple[str, ...]
    """What `Host` may be beside loopback."""
    retries: bool
    routing: Routing
    """How requests spread over the servers."""
    timeout: float
    drain_timeout: int
    console: bool
    """Whether there is a page for people."""
    lora_path_root: Path | None
    """Folder below which callers may name adapters by path."""


class _Server(uvicorn.Server):
    """Ends what would go on by itself before it waits for the rest."""

    def __init__(self, config: uvicorn.Config, console: Console | None) -> None:
        super().__init__(config)
        self._console = console

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See the base class."""
        if self._console:
            self._console.end()
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until a signal; then finish what is under way, and return.

    Raises:
        LoramuxError: Something would be open to other machines, or the server is needed to find
            that out and cannot be reached; or a setting is wrong.
        OSError: The address cannot be listened on, or a file not be read.
    """
    open_backend = partial(
        Backend,
        settings.targets,
        retries=settings.retries,
        routing=settings.routing,
        timeout=settings.timeout,
    )
    hosts = [checked(name) for name in settings.allowed_hosts]
    lora_root = LoraRoot(settings.lora_path_root) if settings.lora_path_root else None
    _check_exposure(settings, open_backend)
    # What other machines can reach has names that nobody here knows.
    checks = bool(hosts) or _is_local(settings)
    console = Console() if settings.console else None
    context, certificate = _tls(settings)
    with _listening(settings.host, settings.port) as listener:
        config = uvicorn.Config(
            make_app(open_backend, hosts if checks else None, console=console, lora_root=lora_root),
            loop="uvloop",
            # Called by uvicorn, and no more.
            http=cast("type[asyncio.Protocol]", partial(Connection, limits=_limits())),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.drain_timeout,
            callback_notify=certificate.refresh if certificate else None,
            timeout_notify=REFRESH_SECONDS,
        )
        config.load()
        config.ssl = context
        host, port = listener.getsockname()[:2]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # From here on connections wait in the socket until they are answered.
        scheme = "https" if context else "http"
        print(f"{scheme}://{place}/v1 -> {', '.join(settings.targets)}", flush=True)
        if console:
            print(f"{scheme}://{place}/console", flush=True)
        # uvicorn ends on these, and then lets whoever had them before know.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _ended)
        _Server(config, console).run(sockets=[listener])


def _tls(settings: Settings) -> tuple[ssl.SSLContext | None, Certificate | None]:
    """Return what TLS is made with, if there is any, and what it shows.

    Raises:
        InvalidArgumentError: The files cannot be used; the message says which, and why.
        OSError: One of them cannot be read.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None, None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        return context, Certificate(settings.tls_cert, settings.tls_key, context)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None


def _listening(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
    return listener


def _is_local(settings: Settings) -> bool:
    return is_local(f"{settings.host}:{settings.port}")


def _limits() -> Limits:
    """Return what callers may do. There may be fewer of them where few files can be open."""
    limits = Limits()
    wanted = limits.max_connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        limits = Limits(max_connections=max(soft - _FILES, soft // 2))
    return limits


def _check_exposure(settings: Settings, open_backend: partial[Backend]) -> None:
    """Demand that other machines find nothing open and read no keys, unless that is wanted."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key go together; set both")
    is_exposed = not (settings.insecure or _is_local(settings))
    lacks = ""
    if is_exposed and settings.tls_cert is None:
        lacks = "the gateway lacks TLS: set --tls-cert and --tls-key"
    elif asyncio.run(_lets_anybody_in(open_backend, asks=is_exposed)):
        lacks = "the server lacks keys: make one with `loramux keys create --store DIR`"
    if lacks:
        raise FailedPreconditionError(
            f"--host {settings.host}: other machines can reach that, and {lacks}. Or bind to "
            "127.0.0.1, or add --insecure where a proxy or the network keeps others out"
        )


async def _lets_anybody_in(open_backend: partial[Backend], *, asks: bool) -> bool:
    """Return whether the server answers who shows no key, as far as that is asked.

    Raises:
        LoramuxError: There is no safe way to the server, or it cannot be asked.
    """
    backend = open_backend()
    try:
        if asks:
            await backend.info(Caller("", "", (), {}))
    except UnauthenticatedError:
        return False
    finally:
        await backend.close()
    return asks


def _ended(number: int, frame: object) -> None:
    """Take the signal that ended the server, which is the wanted end of the process."""
