"""What the config of a server names, opened, or refused with what would be right."""

import contextlib
from functools import partial
from pathlib import Path

import sqlalchemy.exc

from loramux.errors import InvalidArgumentError
from loramux_server.config import ConfigError, ServerConfig
from loramux_server.observe.audit import Audit, AuditFile
from loramux_server.sources.policy import MissingExtraError, Sources
from loramux_server.store.catalog import Catalog, CatalogAwayError, CatalogUrlError
from loramux_server.store.pairing import OtherStoreError, pair
from loramux_server.store.places import stores_folder
from loramux_server.store.quota import Quotas, StorageLimits
from loramux_server.store.registry import Registry
from loramux_server.store.schema import NewerFormatError
from loramux_server.wire.model_info import ModelInfo


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


def adapters_folder(config: ServerConfig) -> Path | None:
    """Return the folder of adapters that is watched, if one is.

    Raises:
        ConfigError: There is none.
    """
    if not config.adapters:
        return None
    path = Path(config.adapters)
    if not path.is_dir():
        raise ConfigError(f"--adapters {config.adapters} is no directory")
    return path
