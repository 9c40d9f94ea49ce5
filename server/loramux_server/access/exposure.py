"""Refusing to listen on a reachable address without protection."""

import ipaddress
import socket

from loramux_server.config import ConfigError, ServerConfig, split_address


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a listener on `host`."""
    try:
        # An IPv6 address with a port is in brackets.
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(where[0])).is_loopback for *_, where in found)


def check_exposure(config: ServerConfig, *, knows_callers: bool) -> None:
    """Demand that ports other machines can reach are protected, unless `--insecure` is set.

    Args:
        config: The addresses to listen on, and TLS.
        knows_callers: Whether the server can authenticate callers.

    Raises:
        ConfigError: A port would be open; the message says how to protect it.
    """
    if config.insecure:
        return
    lacks = []
    if config.tls_cert is None:
        lacks.append("TLS: set --tls-cert and --tls-key")
    if not knows_callers:
        lacks.append("keys: make one with `loramux keys create --store DIR`, or set --access")
    if lacks and not is_loopback(split_address("listen", config.listen)[0]):
        raise ConfigError(_refusal("listen", config.listen, " and ".join(lacks)))
    is_closed = config.tls_client_ca is not None
    if not is_closed and not is_loopback(split_address("metrics", config.metrics)[0]):
        needs = "client certificates: set --tls-cert, --tls-key and --tls-client-ca"
        raise ConfigError(_refusal("metrics", config.metrics, needs))


def _refusal(name: str, address: str, lacks: str) -> str:
    return (
        f"--{name} {address}: other machines can reach that, and the server lacks {lacks}. "
        f"Or bind to 127.0.0.1, or add --insecure where a proxy or the network keeps others out"
    )
