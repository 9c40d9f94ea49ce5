"""TLS certificates of the server and authorities for clients, reloaded when their files change.

A certificate and key that do not match, because only one of them has been replaced yet, are not
used until they do.
"""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from loramux._certificate_files import Stamps, check_certificates, load_pair, stamps
from loramux_server.config import ConfigError, ServerConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The content of the files, and their stamps when they were read."""

    stamps: Stamps
    configuration: grpc.ServerCertificateConfiguration


class ServerTls:
    """Owns the certificates. `refresh` checks the files; handshakes use the newest loaded pair."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files.

        Args:
            certificate: Certificate chain of the server, PEM.
            key: Its private key, PEM, not encrypted.
            client_ca: CA certificates, PEM, one of which has to have signed the client's
                certificate; None lets clients connect without one.

        Raises:
            ConfigError: They cannot be used; the message says why.
        """
        self.certificate = certificate
        self.key = key
        self.client_ca = client_ca
        self.on_change: Callable[[], object] = lambda: None
        """Called after changed files were loaded."""
        try:
            self._loaded = self._load()
        except (OSError, ValueError) as error:
            raise ConfigError(_load_error(error)) from None
        self._shown = self._loaded
        self._refused: Stamps | None = None
        """Stamps at the last attempt to reload, so that a failed one is not repeated."""

    @classmethod
    def of(cls, config: ServerConfig) -> "ServerTls | None":
        """Return the certificates that `config` names; None if it names none.

        Raises:
            ConfigError: The files cannot be used.
        """
        if config.tls_cert is None or config.tls_key is None:
            return None
        client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        return cls(Path(config.tls_cert), Path(config.tls_key), client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that use the newest certificates in every handshake."""
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self._newest,  # type: ignore[arg-type]  # None is allowed: nothing changed
            require_client_authentication=self.client_ca is not None,
        )
        return credentials

    def refresh(self) -> None:
        """Reload changed files; unusable ones are ignored, and logged once."""
        found = self._stamps()
        if found in (self._loaded.stamps, self._refused):
            return
        self._refused = found
        try:
            self._loaded = self._load()
        except (OSError, ValueError) as error:
            _log.warning(
                "cannot reload the certificate, keeping the current one: %s", _load_error(error)
            )
            return
        _log.info("certificate reloaded")
        self.on_change()

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration for handshakes from now on, or None if it has not changed."""
        loaded = self._loaded
        if loaded is self._shown:
            return None
        self._shown = loaded
        return loaded.configuration

    def _load(self) -> _Loaded:
        begin = self._stamps()
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.certificate, self.key)
        authorities = None
        if self.client_ca is not None:
            authorities = check_certificates("--tls-client-ca", self.client_ca)
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        if self._stamps() != begin:
            raise ValueError("files of --tls-cert, --tls-key or --tls-client-ca change")
        return _Loaded(begin, grpc.ssl_server_certificate_configuration([pair], authorities))

    def _stamps(self) -> Stamps:
        return stamps(self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


def _load_error(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"a certificate cannot be used: {error.filename}: {error.strerror}"
    return f"a certificate cannot be used: {error}"
