"""Access control of the server, set up from its settings and the catalog."""

import asyncio
import logging
from pathlib import Path

import sqlalchemy.exc

from loramux_server.access.access_file import AccessFile
from loramux_server.access.authenticator import Authenticator
from loramux_server.access.certificates import Certificates
from loramux_server.access.exposure import check_exposure
from loramux_server.access.gate import Gate
from loramux_server.access.key_ring import KeyRing
from loramux_server.access.quotas import Quotas
from loramux_server.access.server_secret import ServerSecretError
from loramux_server.access.tenants import Tenants
from loramux_server.access.tls import ServerTls
from loramux_server.config import ConfigError, ServerConfig
from loramux_server.store.catalog import Catalog
from loramux_server.tasks import finished

_log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.25
"""Interval between reloads of keys and tenants, and so the time until a revocation takes effect."""


class AccessControl:
    """Owns the gate, keys, tenants and quotas, and reloads them."""

    def __init__(self, catalog: Catalog, folder: Path, config: ServerConfig) -> None:
        """Read the keys of the store in `folder`.

        Raises:
            ConfigError: They or the access file cannot be used, or the server would be open to
                other machines.
        """
        try:
            self._file = AccessFile(Path(config.access) if config.access else None)
            self._ring = KeyRing(catalog.keys, folder, self._file)
        except OSError as error:
            raise ConfigError(f"--access {config.access}: {error.strerror}") from None
        except (ServerSecretError, ValueError) as error:
            raise ConfigError(str(error)) from None
        domain = config.tls_client_domain
        certificates = Certificates(domain) if domain else None
        check_exposure(config, knows_callers=self._ring.has_valid_key() or certificates is not None)
        if config.insecure and self._ring.is_empty and certificates is None:
            _log.warning(
                "--insecure without keys: anyone who can reach the server has admin rights"
            )
        self._last_cause = ""
        self.quotas = Quotas(catalog.policies, self._file)
        self._tenants = Tenants(catalog.disabled_tenants, self._file)
        self.gate = Gate(Authenticator(self._ring, self._tenants, certificates))

    async def watch(self, tls: ServerTls | None) -> None:
        """Reload keys, limits, tenants and certificates periodically, forever.

        Running calls end when their key becomes invalid or their tenant is disabled.
        """
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await finished(asyncio.to_thread(self._refresh, tls))
            except Exception as error:  # no thread can be started, for example
                self._log_cause(_cause(error))
            self.gate.cancel_revoked()

    def _refresh(self, tls: ServerTls | None) -> None:
        causes = list[str]()
        sources = [self._file.refresh, self._ring.refresh, self.quotas.refresh]
        sources += [self._tenants.refresh, *([tls.refresh] if tls else [])]
        for refresh in sources:
            try:
                refresh()
            except Exception as error:  # must stop neither the other sources nor the next attempt
                causes.append(_cause(error))
        self._log_cause("; ".join(dict.fromkeys(causes)))

    def _log_cause(self, cause: str) -> None:
        """Log why a reload failed, once while the cause is the same."""
        if cause and cause != self._last_cause:
            _log.warning(
                "cannot reload keys, tenants or certificates, keeping the current ones: %s", cause
            )
        self._last_cause = cause


def _cause(error: Exception) -> str:
    """Return `error` as text for the log: of a failed SQL statement, never its parameters."""
    return str(error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error)
