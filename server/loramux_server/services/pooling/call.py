"""One request to read texts to their end, which an adapter or the base does not continue."""

from dataclasses import dataclass

from loramux.v1 import generation_pb2
from loramux_server.services.adapters.descriptions import identity_of
from loramux_server.services.deadline import Deadline
from loramux_server.services.observer import Observer
from loramux_server.store.instructions import Instruction
from loramux_server.store.record import AdapterRecord
from loramux_server.waiting_room.place import Place
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Started


@dataclass(frozen=True, slots=True)
class Reading:
    """One such request, whose adapter is resolved and kept."""

    request_id: str
    record: AdapterRecord | None
    """The adapter; None for the base model alone, as `source`."""
    source: AdapterSource | None
    told: Instruction
    """What the adapter's package says."""
    observer: Observer
    place: Place
    """What it takes of the waiting room."""
    deadline: Deadline

    @property
    def identity(self) -> generation_pb2.AdapterIdentity | None:
        """The adapter, as callers are told of it."""
        return identity_of(self.record) if self.record else None

    @property
    def adapter(self) -> str:
        """Its full name; empty for the base model."""
        return self.record.full_name if self.record else ""

    @property
    def num_virtual(self) -> int:
        """Virtual tokens that it puts before each text."""
        return self.source.virtual_tokens if self.source else 0

    @property
    def digest(self) -> str | None:
        """Its digest."""
        return self.record.digest if self.record else None

    def started(self, started: Started) -> None:
        """Note that a text left the engine's queue."""
        self.place.started()
        self.observer.started(started)
