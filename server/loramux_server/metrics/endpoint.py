"""The HTTP port that Prometheus scrapes."""

import ssl
from contextlib import AsyncExitStack

from prometheus_client import CollectorRegistry, start_http_server

from loramux_server.access.exposure import is_loopback
from loramux_server.access.tls import ServerTls
from loramux_server.config import ConfigError, split_address


def serve_metrics(
    address: str, registry: CollectorRegistry, tls: ServerTls | None, until: AsyncExitStack
) -> str:
    """Serve `registry` on HOST:PORT until `until` is closed; return the address with its port.

    `tls` is used unless HOST is loopback.

    Raises:
        ConfigError: The port cannot be bound.
    """
    host, port = split_address("metrics", address)
    used = None if is_loopback(host) else tls
    try:
        http, thread = start_http_server(
            port,
            host.strip("[]"),  # brackets of an IPv6 address
            registry,
            certfile=str(used.certificate) if used else None,
            keyfile=str(used.key) if used else None,
            client_cafile=str(used.client_ca) if used and used.client_ca else None,
            client_auth_required=used is not None and used.client_ca is not None,
        )
    except OSError as error:
        raise ConfigError(f"--metrics {address}: {error.strerror}") from None
    if used:
        assert isinstance(http.socket, ssl.SSLSocket)
        context = http.socket.context
        used.on_change = lambda: context.load_cert_chain(used.certificate, used.key)
    until.callback(thread.join)
    until.callback(http.server_close)
    until.callback(http.shutdown)
    return f"{host}:{http.server_port}"
