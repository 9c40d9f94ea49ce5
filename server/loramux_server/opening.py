"""What the config of a server names, opened, or refused with what would be right."""

import contextlib
import logging
import socket
from functools import partial
from pathlib import Path

import sqlalchemy.exc

from loramux._access import certificate_files
from loramux._certificate_files import check_names_nobody
from loramux.errors import InvalidArgumentError
from loramux_adapters import PackageError
from loramux_adapters.base import BaseFolder, read_base
from loramux_server.config import ConfigError, ServerConfig
from loramux_server.observe.audit import Audit, AuditFile
from loramux_server.replica.primary import Primary
from loramux_server.sources.policy import MissingExtraError, Sources
from loramux_server.sources.templates import Templates
from loramux_server.store.catalog import Catalog, CatalogAwayError, CatalogUrlError
from loramux_server.store.pairing import OtherStoreError, pair
from loramux_server.store.places import stores_folder
from loramux_server.store.quota import Quotas, StorageLimits
from loramux_server.store.registry import Registry
from loramux_server.store.schema import NewerFormatError
from loramux_server.store.signers import TrustedSigners
from loramux_server.wire.model_info import ModelInfo

_log = logging.getLogger(__name__)

_REPLICA = "is_replica"


def weights_of(model: str) -> BaseFolder | None:
    """Return the folder `model` of a base with weights that adapters can be folded with.

    None where there is none: a hub id, or weights in another format.
    """
    path = Path(model)
    try:
        return read_base(path) if path.is_dir() else None
    except PackageError:
        return None


def open_registry(folder: Path, config: ServerConfig) -> Registry:
    """Open the store in `folder`, which is made if it is not there.

    Raises:
        ConfigError: It cannot be opened.
        StoreLockedError: Another server uses it.
        CatalogAwayError: The database of --catalog does not answer.
    """
    limits = StorageLimits(config.max_tenant_bytes, config.max_tenant_adapters)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as on_error:
            registry = Registry(
                folder, Quotas(lambda _: limits), catalog=partial(Catalog.at, config.catalog)
            )
            on_error.callback(registry.close)
            if config.catalog:
                pair(registry.catalog, folder)
            on_error.pop_all()
        return registry
    except OSError as error:
        raise ConfigError(f"--store {folder}: {error.strerror}") from None
    except NewerFormatError as error:
        raise ConfigError(f"--store {folder}: {error}") from None
    except CatalogAwayError:
        raise
    except CatalogUrlError as error:
        raise ConfigError(str(error)) from None
    except OtherStoreError as error:
        raise ConfigError(f"--catalog: {error}") from None
    except sqlalchemy.exc.DatabaseError as error:
        raise ConfigError(f"--store {folder}: the catalog is damaged: {error.orig}") from None


def default_store(model: ModelInfo) -> Path:
    """Return where the store of a base model is that nobody gave a place."""
    digest = model.fingerprint.removeprefix("sha256:")[:12]
    return stores_folder() / f"{model.name or 'base'}-{digest}"


def claim(registry: Registry, model: ModelInfo) -> None:
    """Keep a store for one base model: an adapter means nothing to another.

    Raises:
        ConfigError: It is kept for another.
    """
    served = registry.catalog.note("base_fingerprint")
    if served is None:
        registry.catalog.keep_note("base_fingerprint", model.fingerprint)
    elif served != model.fingerprint:
        raise ConfigError(
            f"--store holds adapters of another base model ({served}), not of {model.name} "
            f"({model.fingerprint}); give each base a store of its own"
        )


def open_audit(config: ServerConfig) -> Audit:
    """Open the audit log, which need not be kept.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = config.audit_log
    try:
        return Audit(AuditFile(path) if path else None)
    except OSError as error:
        raise ConfigError(f"--audit-log {path}: {error.strerror}") from None


def sources_of(config: ServerConfig) -> Sources:
    """Return where adapters may be imported from.

    Raises:
        ConfigError: A place is malformed, or needs what is not installed.
    """
    try:
        return Sources(config.hub_allow, config.object_allow, config.oci_allow)
    except InvalidArgumentError as error:
        raise ConfigError(f"--object-allow: {error}") from None
    except MissingExtraError as error:
        raise ConfigError(str(error)) from None


def signers_of(config: ServerConfig) -> TrustedSigners:
    """Return who has to vouch for packages.

    Raises:
        ConfigError: A file holds no public key, or cannot be read.
    """
    try:
        return TrustedSigners([Path(name) for name in config.trusted_signer])
    except OSError as error:
        raise ConfigError(f"--trusted-signer {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--trusted-signer: {error}") from None


def templates_of(config: ServerConfig) -> Templates:
    """Return where adapters are fetched from that a request names.

    Raises:
        ConfigError: A template is wrong, or does not go with another setting.
    """
    if config.resolve_ttl and not config.resolve:
        raise ConfigError("--resolve-ttl is for --resolve, which is not given")
    try:
        return Templates(config.resolve)
    except (ValueError, InvalidArgumentError, MissingExtraError) as error:
        raise ConfigError(f"--resolve: {error}") from None


def primary_of(config: ServerConfig) -> Primary | None:
    """Return the server whose adapters this one is to have, if it is a replica.

    None as well if --replica-of names this server: pods of a StatefulSet have the same options.

    Raises:
        ConfigError: A setting does not go with that, or its file cannot be read.
    """
    if config.replica_of is None:
        for name in ("replica_key", "replica_ca", "replica_cert", "replica_cert_key"):
            if getattr(config, name):
                raise ConfigError(f"--{name.replace('_', '-')} requires --replica-of")
        return None
    if is_itself(config.replica_of, config.listen):
        _log.info("--replica-of %s is this server: it is the primary", config.replica_of)
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
    """Return the files of what is presented to the primary: for others, whose calls go there too.

    Raises:
        ConfigError: One of the two options is missing.
        InvalidArgumentError: The same, in the environment.
        OSError: The certificate cannot be read.
        ValueError: It is none, or names a caller.
    """
    given = config.replica_cert, config.replica_cert_key
    if any(given) and not all(given):
        raise ConfigError("--replica-cert and --replica-cert-key go together; set both")
    cert, key = given
    files = certificate_files((cert, key) if cert and key else None)
    if files:
        check_names_nobody("--replica-cert", files[0])
    return files


def is_itself(target: str, listen: str) -> bool:
    """Return whether `target` is the server of this machine that listens on `listen`.

    Args:
        target: HOST:PORT, where HOST or its first label is the name of a machine. Names are
            compared, not addresses: that of a pod that starts is not known yet.
        listen: HOST:PORT that the server listens on.
    """
    host, _, port = target.rpartition(":")
    ours = socket.gethostname().lower()
    return port == listen.rpartition(":")[2] and ours in (host.lower(), host.lower().split(".")[0])


def become(registry: Registry, *, is_replica: bool) -> None:
    """Keep a store for a replica, or for a server whose adapters are its own.

    Raises:
        ConfigError: What is there would be taken away because the primary lacks it.
    """
    was_replica = bool(registry.catalog.note(_REPLICA))
    if is_replica and not was_replica and len(registry):
        raise ConfigError(
            "--store has adapters that were added to this server itself; --replica-of requires an "
            "empty store, or the store of a replica"
        )
    if not is_replica:
        registry.lineage.begin()
    if is_replica != was_replica:
        registry.catalog.keep_note(_REPLICA, "yes" if is_replica else "")


def adapters_folder(config: ServerConfig) -> Path | None:
    """Return the folder of adapters that is watched, if one is.

    Raises:
        ConfigError: There is none.
    """
    if not config.adapters:
        return None
    path = Path(config.adapters)
    if not path.is_dir():
        raise ConfigError(f"--adapters {config.adapters} is not a directory")
    return path
