"""What a server has opened and loaded when it serves."""

import contextlib
from dataclasses import dataclass

from loramux_server.access.access_control import AccessControl
from loramux_server.access.tls import ServerTls
from loramux_server.observe.audit import Audit
from loramux_server.observe.tracing import Tracing
from loramux_server.origins import Origins
from loramux_server.replica.mirror import Mirror
from loramux_server.services.services import Services
from loramux_server.store.directory import Directory
from loramux_server.store.registry import Registry
from loramux_server.wire.model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """The adapter store, and access control for it."""

    registry: Registry
    access_control: AccessControl


@dataclass(frozen=True, slots=True)
class Opened:
    """What is opened from the config before the model is loaded."""

    tls: ServerTls | None
    origins: Origins
    store: OpenedStore | None
    """None if its folder depends on the model."""
    tracing: Tracing | None
    audit: Audit
    port: contextlib.ExitStack
    """Keeps the port of --listen from others until it is closed."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is built once the model is loaded."""

    model: ModelInfo
    store: OpenedStore
    directory: Directory
    services: Services
    mirror: Mirror | None
    """Mirrors the adapters of a primary; None unless this is a replica."""
