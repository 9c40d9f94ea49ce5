"""What stands between the port and the services, made from the settings and the catalog."""

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
from loramux_server.services.adapters.storage import finished
from loramux_server.store.catalog import Catalog

_log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.25
"""How often keys and tenants are looked at: what was revoked opens nothing after that."""


class Entrance:
    """Owns who may come in."""

    def __init__(self, catalog: Catalog, folder: Path, config: ServerConfig) -> None:
        """Read the keys of the store in `folder`.

        Raises:
            ConfigError: They cannot be checked, or others could come in without one.
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
        self._said = ""
        self.quotas = Quotas(catalog.policies, self._file)
        self._tenants = Tenants(catalog.disabled_tenants, self._file)
        self.gate = Gate(Authenticator(self._ring, self._tenants, certificates))

    async def watch(self, tls: ServerTls | None) -> None:
        """Take in, again and again, which keys, tenants and certificates there are.

        Calls of keys that are not there any more end, and those of tenants that were disabled.
        """
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await finished(asyncio.to_thread(self._refresh, tls))
            self.gate.shut_out()

    def _refresh(self, tls: ServerTls | None) -> None:
        causes = list[str]()
        for source in (self._file, self._ring, self.quotas, self._tenants):
            try:
                source.refresh()
            except Exception as error:  # whatever it is, the others must be looked at, and it again
                causes.append(_cause(error))
        self._say("; ".join(dict.fromkeys(causes)))
        if tls is not None:
            tls.refresh()

    def _say(self, cause: str) -> None:
        """Log why keys could not be looked at, once as long as it is the same."""
        if cause and cause != self._said:
            _log.warning(
                "cannot reload keys, limits and tenants, keeping the current ones: %s", cause
            )
        self._said = cause


def _cause(error: Exception) -> str:
    """Return what may be said of `error`: of a statement, never its values."""
    return str(error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error)
