"""The HTTP port of the gateway that Prometheus scrapes."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from loramux._access import is_local
from loramux._channel import MAX_PORT
from loramux.errors import FailedPreconditionError, InvalidArgumentError


@dataclass(frozen=True, slots=True)
class MetricsPort:
    """Where the metrics are served, and to whom."""

    host: str
    port: int
    pair: tuple[Path, Path] | None
    """Certificate and key, to serve HTTPS."""
    client_ca: Path | None
    """CA of the client certificates that may read the metrics; None to require none."""

    @contextmanager
    def serving(self, registry: CollectorRegistry) -> Iterator[tuple[str, ssl.SSLContext | None]]:
        """Serve `registry` for the block; yields the URL and the TLS context, if any.

        Raises:
            InvalidArgumentError: The port cannot be bound.
            OSError: A file cannot be read.
        """
        certificate, key = self.pair or (None, None)
        try:
            http, thread = start_http_server(
                self.port,
                self.host.strip("[]"),
                registry,
                certfile=str(certificate) if certificate else None,
                keyfile=str(key) if key else None,
                client_cafile=str(self.client_ca) if self.client_ca else None,
                client_auth_required=self.client_ca is not None,
            )
        except ssl.SSLError:
            raise
        except OSError as error:
            raise InvalidArgumentError(
                f"--metrics {self.host}:{self.port}: {error.strerror}"
            ) from None
        try:
            scheme = "https" if self.pair else "http"
            context = http.socket.context if isinstance(http.socket, ssl.SSLSocket) else None
            yield f"{scheme}://{self.host}:{http.server_port}/metrics", context
        finally:
            http.shutdown()
            http.server_close()
            thread.join()


def metrics_port(
    address: str, pair: tuple[Path, Path] | None, client_ca: Path | None, *, insecure: bool
) -> MetricsPort:
    """Return where `--metrics` is served.

    Args:
        address: HOST:PORT.
        pair: The gateway's certificate and key, used if other machines can reach the port.
        client_ca: CA of the client certificates that may read the metrics.
        insecure: Whether other machines may read the metrics without a client certificate.

    Raises:
        InvalidArgumentError: `address` is not HOST:PORT, or `client_ca` lacks `pair`.
        FailedPreconditionError: Other machines could read the metrics.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and int(port) <= MAX_PORT):
        raise InvalidArgumentError(f"--metrics {address}: expected HOST:PORT")
    if client_ca and not pair:
        raise InvalidArgumentError("--metrics-client-ca requires --tls-cert and --tls-key")
    if is_local(address):
        return MetricsPort(host, int(port), None, None)
    if not (insecure or client_ca):
        raise FailedPreconditionError(
            f"--metrics {address}: other machines can reach this address, but the gateway requires "
            "no client certificate: set --tls-cert, --tls-key and --metrics-client-ca. Or bind to "
            "127.0.0.1, or add --insecure if a proxy or the network restricts access"
        )
    return MetricsPort(host, int(port), pair, client_ca)
