"""The services of a server, and how they handle events of the engine and the registry."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from loramux.v1 import adapters_pb2
from loramux_server.metrics.loop_lag import LoopLag
from loramux_server.metrics.series import Metrics
from loramux_server.served_names import SharedNames
from loramux_server.services.adapters.changes import Changes
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.pins import Pins
from loramux_server.services.adapters.resolving import Resolver
from loramux_server.services.adapters.seals import FoundSeals
from loramux_server.services.adapters.uploads import UploadService
from loramux_server.services.prompts import Prompts
from loramux_server.services.request_spans import RequestSpans
from loramux_server.statuses import Statuses
from loramux_server.store.alias import Move
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import full_name
from loramux_server.store.registry import Registry
from loramux_server.store.write_lock import ADDED, REMOVED, UPDATED
from loramux_server.transport.rpc import Service
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.messages import Report

_KINDS = {
    ADDED: adapters_pb2.ADAPTER_CHANGE_REGISTERED,
    UPDATED: adapters_pb2.ADAPTER_CHANGE_UPDATED,
    REMOVED: adapters_pb2.ADAPTER_CHANGE_DELETED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The gRPC services, and what receives events of the engine and the registry."""

    answering: Sequence[Service]
    intake: Intake
    resolver: Resolver | None
    """Fetches adapters on demand; None if no location is configured."""
    uploads: UploadService
    seals: FoundSeals
    statuses: Statuses
    pins: Pins
    changes: Changes
    metrics: Metrics
    prompts: Prompts
    room: WaitingRoom
    spans: RequestSpans
    lag: LoopLag
    shared_names: SharedNames

    def report(self, report: Report) -> None:
        """Process the report of one engine step."""
        self.seals.report(report)
        self.statuses.report(report)
        self.room.report(report.stats)
        self.spans.report(report)

    def engine_ready(self, is_ready: bool) -> None:
        """Handle that the engine became ready, or died."""
        if is_ready:
            self.pins.resume()
        else:
            self.statuses.engine_died()

    def follow(self, registry: Registry, loop: asyncio.AbstractEventLoop) -> None:
        """Handle, on `loop`, all further changes to the versions in `registry`."""
        self.shared_names.look_at(registry.records())

        def on_change(what: str, record: AdapterRecord) -> None:
            if what == ADDED:
                self.shared_names.look_at([record])
            if what == REMOVED:
                self.pins.forget(record)
                if not registry.versions(record.full_name):
                    self.metrics.labels.forget(record.full_name)
            self.changes.notify(_KINDS[what], [record])

        def on_alias_move(move: Move) -> None:
            versions = {*move.before.versions, *move.after.versions}
            found = registry.versions(full_name(move.tenant, move.name))
            self.changes.notify(_KINDS[UPDATED], [r for r in found if r.version in versions])

        def on_tier_change(digest: str) -> None:
            moved_kind = adapters_pb2.ADAPTER_CHANGE_MOVED
            self.changes.notify(moved_kind, registry.with_digest(digest))

        registry.follow(lambda what, record: loop.call_soon_threadsafe(on_change, what, record))
        registry.aliases.on_move = lambda move: loop.call_soon_threadsafe(on_alias_move, move)
        self.statuses.on_move = on_tier_change
