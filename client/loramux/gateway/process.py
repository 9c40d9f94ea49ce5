"""The gateway process: listener, TLS, startup and shutdown."""

import asyncio
import resource
import signal
import socket
import ssl
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from loramux._access import is_local
from loramux._channel import Routing
from loramux._json_lines import set_up_logging
from loramux.errors import InvalidArgumentError
from loramux.gateway.app import make_app
from loramux.gateway.backend import Backend
from loramux.gateway.certificate import REFRESH_SECONDS, Certificate
from loramux.gateway.connection import Connection, Limits
from loramux.gateway.console import Console
from loramux.gateway.exposure import check_exposure
from loramux.gateway.hosts import checked
from loramux.gateway.lora_root import LoraRoot
from loramux.gateway.observe.endpoint import MetricsPort, metrics_port
from loramux.gateway.observe.metrics import GatewayMetrics
from loramux.gateway.observe.middleware import ObservabilityMiddleware
from loramux.gateway.observe.templates import Templates

_KEEP_ALIVE_SECONDS = 75
"""Keep-alive of idle connections: longer than that of proxies and OpenAI's client, which could
otherwise send a request just as the connection is closed."""
_BACKLOG = 2048
_SEND_BYTES = 128 << 10
"""Socket send buffer, for a caller who does not read; the default would be megabytes."""

_FILES = 128
"""Maximum number of open files besides callers' connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `loramux gateway`. Times are in seconds."""

    targets: tuple[str, ...]
    """Servers that serve the same models."""
    host: str
    port: int
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool
    allowed_hosts: tuple[str, ...]
    """Values that `Host` may have in addition to loopback names."""
    retries: bool
    routing: Routing
    """How requests are spread over the servers."""
    timeout: float
    drain_timeout: int
    console: bool
    """Whether to serve the web console."""
    lora_path_root: Path | None
    """Folder below which callers may name adapters by path."""
    metrics: str | None = None
    """HOST:PORT of the metrics."""
    metrics_client_ca: Path | None = None
    """CA of the client certificates that may read the metrics, if other machines can reach them."""
    target_cert: Path | None = None
    target_key: Path | None = None
    log_format: str | None = None
    """`text` or `json` for a log line per request."""

    @property
    def pair(self) -> tuple[Path, Path] | None:
        """Certificate and key, if there is TLS."""
        return (self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None

    @property
    def target_pair(self) -> tuple[Path, Path] | None:
        """Certificate and key to present to servers, if there are any."""
        return (self.target_cert, self.target_key) if self.target_cert and self.target_key else None


class _Server(uvicorn.Server):
    """Ends background tasks and console streams before waiting for requests to finish."""

    def __init__(
        self, config: uvicorn.Config, console: Console | None, metrics: GatewayMetrics | None
    ) -> None:
        super().__init__(config)
        self._console = console
        self._metrics = metrics
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See the base class."""
        if self._metrics:
            connections = self.server_state.connections
            self._metrics.connections.set_function(lambda: len(connections))
            self._watching = asyncio.create_task(self._metrics.watch_lag())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See the base class."""
        if self._watching:
            self._watching.cancel()
        if self._console:
            self._console.end()
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; then finish requests in progress, and return.

    Raises:
        LoramuxError: Other machines would get access, or the server cannot be reached to check
            this; or a setting is wrong.
        OSError: The address cannot be bound, or a file cannot be read.
    """
    open_backend = partial(
        Backend,
        settings.targets,
        retries=settings.retries,
        routing=settings.routing,
        timeout=settings.timeout,
        certificate=settings.target_pair,
    )
    hosts = [checked(name) for name in settings.allowed_hosts]
    lora_root = LoraRoot(settings.lora_path_root) if settings.lora_path_root else None
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key go together; set both")
    if (settings.target_cert is None) != (settings.target_key is None):
        raise InvalidArgumentError("--target-cert and --target-key go together; set both")
    port = _metrics_port(settings)
    check_exposure(
        settings.host,
        open_backend,
        certificate=None if _is_local(settings) else settings.target_cert,
        is_exposed=not (settings.insecure or _is_local(settings)),
        has_tls=settings.pair is not None,
    )
    if settings.log_format:
        set_up_logging("gateway", settings.log_format)
    # If other machines can reach the gateway, its host names are unknown here.
    checks = bool(hosts) or _is_local(settings)
    console = Console() if settings.console else None
    context, certificate = _tls(settings.pair)
    certificates = [certificate] if certificate else []
    metrics = GatewayMetrics() if port else None
    with ExitStack() as until:
        listener = until.enter_context(_listening(settings.host, settings.port))
        url = ""
        if port and metrics:
            url, metrics_context = until.enter_context(port.serving(metrics.registry))
            if metrics_context and port.pair:
                certificates.append(Certificate(*port.pair, metrics_context))
        app = make_app(
            partial(open_backend, call_ended=metrics.call_ended if metrics else None),
            hosts if checks else None,
            console=console,
            lora_root=lora_root,
            connected_by=settings.target_pair or (),
        )
        observed: ASGIApp = app
        if metrics or settings.log_format:
            observed = ObservabilityMiddleware(
                app, Templates(app.routes), metrics=metrics, log_format=settings.log_format
            )
        rejected = metrics.rejected_with if metrics else None
        config = uvicorn.Config(
            observed,
            loop="uvloop",
            # uvicorn only calls it, so a partial will do.
            http=cast(
                "type[asyncio.Protocol]", partial(Connection, limits=_limits(), rejected=rejected)
            ),
            ws="none",
            lifespan="on",
            log_config=None if settings.log_format else uvicorn.config.LOGGING_CONFIG,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.drain_timeout,
            callback_notify=partial(_refresh, certificates),
            timeout_notify=REFRESH_SECONDS,
        )
        config.load()
        config.ssl = context
        host, number = listener.getsockname()[:2]
        place = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        # From here on connections are queued in the listen backlog until they are accepted.
        scheme = "https" if context else "http"
        print(f"{scheme}://{place}/v1 -> {', '.join(settings.targets)}", flush=True)
        if url:
            print(url, flush=True)
        if console:
            print(f"{scheme}://{place}/console", flush=True)
        # uvicorn shuts down on these, then raises them again for the handlers set before.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, _ended)
        _Server(config, console, metrics).run(sockets=[listener])


async def _refresh(certificates: Collection[Certificate]) -> None:
    for each in certificates:
        await each.refresh()


def _metrics_port(settings: Settings) -> MetricsPort | None:
    if settings.metrics is None:
        if settings.metrics_client_ca:
            raise InvalidArgumentError("--metrics-client-ca requires --metrics")
        return None
    return metrics_port(
        settings.metrics,
        settings.pair,
        settings.metrics_client_ca,
        insecure=settings.insecure,
    )


def _tls(
    pair: tuple[Path, Path] | None,
) -> tuple[ssl.SSLContext | None, Certificate | None]:
    """Return the TLS context and its certificate, or None for each without TLS.

    Raises:
        InvalidArgumentError: The files cannot be used; the message says which, and why.
        OSError: One of them cannot be read.
    """
    if pair is None:
        return None, None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        return context, Certificate(*pair, context)
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
    """Return the connection limits: the default, or fewer if the file limit cannot be raised."""
    limits = Limits()
    wanted = limits.max_connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        limits = Limits(max_connections=max(soft - _FILES, soft // 2))
    return limits


def _ended(number: int, frame: object) -> None:
    """Ignore the signal that uvicorn raises again after shutdown, so that the exit status is 0."""
