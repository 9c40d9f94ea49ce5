"""A request that reads texts without generating."""

from dataclasses import dataclass

from loramux.v1 import generation_pb2
from loramux_server.services.adapters.descriptions import identity_of
from loramux_server.services.deadline import Deadline
from loramux_server.services.observer import Observer
from loramux_server.store.package_settings import PackageSettings
from loramux_server.store.record import AdapterRecord
from loramux_server.waiting_room.place import Place
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Started


@dataclass(frozen=True, slots=True)
class PoolingCall:
    """Such a request, with a lease on its resolved adapter."""

    request_id: str
    record: AdapterRecord | None
    """The adapter; None for the base model alone, as with `source`."""
    source: AdapterSource | None
    settings: PackageSettings
    """Settings from the adapter's package."""
    observer: Observer
    place: Place
    """What it occupies in the waiting room."""
    deadline: Deadline

    @property
    def identity(self) -> generation_pb2.AdapterIdentity | None:
        """The adapter, as named in the answer."""
        return identity_of(self.record) if self.record else None

    @property
    def adapter(self) -> str:
        """The adapter's full name; empty for the base model."""
        return self.record.full_name if self.record else ""

    @property
    def num_virtual(self) -> int:
        """Virtual tokens that the adapter puts before each text."""
        return self.source.virtual_tokens if self.source else 0

    @property
    def digest(self) -> str | None:
        """The adapter's digest; None for the base model."""
        return self.record.digest if self.record else None

    def started(self, started: Started) -> None:
        """Record that a text left the engine's queue."""
        self.place.started()
        self.observer.started(started)
