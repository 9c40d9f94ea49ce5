"""Opens the store and the audit log that a server's config names."""

import contextlib
from functools import partial
from pathlib import Path

import sqlalchemy.exc

from loramux_adapters import PackageError
from loramux_adapters.base import BaseFolder, read_base
from loramux_server.config import ConfigError, ServerConfig
from loramux_server.observe.audit import Audit, AuditFile
from loramux_server.store.catalog import Catalog, CatalogAwayError, CatalogUrlError
from loramux_server.store.pairing import OtherStoreError, pair
from loramux_server.store.places import stores_folder
from loramux_server.store.quota import Quotas, StorageLimits
from loramux_server.store.registry import Registry
from loramux_server.store.schema import NewerFormatError
from loramux_server.wire.model_info import ModelInfo

_REPLICA = "is_replica"


def weights_of(model: str) -> BaseFolder | None:
    """Return the folder of the base `model`, with weights that packing an adapter may need.

    None for a hub id, or for weights in another format.
    """
    path = Path(model)
    try:
        return read_base(path) if path.is_dir() else None
    except PackageError:
        return None


def open_registry(folder: Path, config: ServerConfig) -> Registry:
    """Open the store in `folder`, creating it if it does not exist.

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
    """Return the folder of a base model's store where --store is not given."""
    digest = model.fingerprint.removeprefix("sha256:")[:12]
    return stores_folder() / f"{model.name or 'base'}-{digest}"


def bind_to_base(registry: Registry, model: ModelInfo) -> None:
    """Bind a store to one base model: its adapters are useless with any other.

    Raises:
        ConfigError: It is bound to another base model.
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
    """Open the audit log; its file is optional.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = config.audit_log
    try:
        return Audit(AuditFile(path) if path else None)
    except OSError as error:
        raise ConfigError(f"--audit-log {path}: {error.strerror}") from None


def mark_replica(registry: Registry, *, is_replica: bool) -> None:
    """Mark a store as a replica's, or as that of a server with adapters of its own.

    Raises:
        ConfigError: Its adapters would be deleted, because the primary lacks them.
    """
    was_replica = bool(registry.catalog.note(_REPLICA))
    if is_replica and not was_replica and len(registry):
        raise ConfigError(
            "--store has adapters that were added to this server directly; --replica-of requires "
            "an empty store, or the store of a replica"
        )
    if not is_replica:
        registry.lineage.begin()
    if is_replica != was_replica:
        registry.catalog.keep_note(_REPLICA, "yes" if is_replica else "")
