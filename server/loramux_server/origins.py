"""Where the adapters of a server come from, according to its config."""

import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from loramux._access import certificate_files
from loramux._certificate_files import check_names_nobody
from loramux.errors import InvalidArgumentError
from loramux_server.config import ConfigError, ServerConfig
from loramux_server.replica.primary import Primary
from loramux_server.sources.policy import MissingExtraError, Sources
from loramux_server.sources.templates import Templates
from loramux_server.store.signers import TrustedSigners

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Where adapters come from, and whose signatures are trusted."""

    folder: Path | None
    """The watched folder; None if --adapters is not given."""
    sources: Sources
    """Where they may be imported from."""
    templates: Templates
    """Where unregistered adapters are fetched from when a request names them."""
    signers: TrustedSigners
    """The signers that are trusted; with none, any package is accepted."""
    primary: Primary | None
    """The server that this one mirrors; None unless this is a replica."""


def origins_of(config: ServerConfig) -> Origins:
    """Return where adapters come from.

    Raises:
        ConfigError: A setting is invalid, or conflicts with another.
    """
    return Origins(
        folder=adapters_folder(config),
        primary=primary_of(config),
        sources=sources_of(config),
        signers=signers_of(config),
        templates=templates_of(config),
    )


def adapters_folder(config: ServerConfig) -> Path | None:
    """Return the watched folder of adapters; None if --adapters is not given.

    Raises:
        ConfigError: It is not a directory.
    """
    if not config.adapters:
        return None
    path = Path(config.adapters)
    if not path.is_dir():
        raise ConfigError(f"--adapters {config.adapters} is not a directory")
    return path


def sources_of(config: ServerConfig) -> Sources:
    """Return where adapters may be imported from.

    Raises:
        ConfigError: A location is malformed, or needs an extra that is not installed.
    """
    try:
        return Sources(config.hub_allow, config.object_allow, config.oci_allow)
    except InvalidArgumentError as error:
        raise ConfigError(f"--object-allow: {error}") from None
    except MissingExtraError as error:
        raise ConfigError(str(error)) from None


def signers_of(config: ServerConfig) -> TrustedSigners:
    """Return the trusted signers of packages.

    Raises:
        ConfigError: A file holds no public key or cannot be read, or an extra is not installed.
    """
    try:
        return TrustedSigners([Path(name) for name in config.trusted_signer])
    except OSError as error:
        raise ConfigError(f"--trusted-signer {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--trusted-signer: {error}") from None


def templates_of(config: ServerConfig) -> Templates:
    """Return where unregistered adapters are fetched from when a request names them.

    Raises:
        ConfigError: A template is invalid, or conflicts with another setting.
    """
    if config.resolve_ttl and not config.resolve:
        raise ConfigError("--resolve-ttl is set; it requires --resolve")
    try:
        return Templates(config.resolve)
    except (ValueError, InvalidArgumentError, MissingExtraError) as error:
        raise ConfigError(f"--resolve: {error}") from None


def primary_of(config: ServerConfig) -> Primary | None:
    """Return the primary that this server mirrors; None unless it is a replica.

    None as well if --replica-of names this server: pods of a StatefulSet share their options.

    Raises:
        ConfigError: A setting is invalid or conflicts with --replica-of, or its file cannot be
            read.
    """
    if config.replica_of is None:
        return None
    if is_itself(config.replica_of, config.listen):
        _log.info("--replica-of %s is this server, which acts as the primary", config.replica_of)
        return None
    for name in ("adapters", "resolve"):
        if getattr(config, name):
            raise ConfigError(
                f"--{name} cannot be used with --replica-of: adapters come from the primary"
            )
    try:
        key = Path(config.replica_key).read_text().strip() if config.replica_key else ""
        authorities = Path(config.replica_ca) if config.replica_ca else None
        return Primary(
            config.replica_of, key=key, authorities=authorities, certificate=_certificate(config)
        )
    except OSError as error:
        raise ConfigError(f"--replica-of: {error.filename}: {error.strerror}") from None
    except (InvalidArgumentError, ValueError) as error:
        raise ConfigError(f"--replica-of {config.replica_of}: {error}") from None


def _certificate(config: ServerConfig) -> tuple[Path, Path] | None:
    """Return the client certificate and key for the primary.

    Calls of clients are forwarded with it, too, so it must not identify a caller itself.

    Raises:
        InvalidArgumentError: One of the two is missing in the environment.
        OSError: The certificate cannot be read.
        ValueError: It is not a certificate, or it identifies a caller.
    """
    cert, key = config.replica_cert, config.replica_cert_key
    files = certificate_files((cert, key) if cert and key else None)
    if files:
        check_names_nobody("--replica-cert", files[0])
    return files


def is_itself(target: str, listen: str) -> bool:
    """Return whether `target` is the server on this machine that listens on `listen`.

    Args:
        target: HOST:PORT, where HOST or its first label is the name of a machine. Names are
            compared, not addresses: that of a starting pod cannot be resolved yet.
        listen: HOST:PORT that the server listens on.
    """
    host, _, port = target.rpartition(":")
    ours = socket.gethostname().lower()
    return port == listen.rpartition(":")[2] and ours in (host.lower(), host.lower().split(".")[0])
