"""All services of a server, put together."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from loramux.v1 import (
    adapters_pb2,
    aliases_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    quarantine_pb2,
    question_answering_pb2,
    residency_pb2,
    server_pb2,
    uploads_pb2,
)
from loramux_server.access.quotas import Quotas
from loramux_server.config import ServerConfig
from loramux_server.engine_link.client import EngineClient
from loramux_server.inference import open_inference_pb2
from loramux_server.metrics.loop_lag import LoopLag
from loramux_server.metrics.series import Metrics
from loramux_server.observe.audit import Audit
from loramux_server.services.adapters.aliases import AliasService
from loramux_server.services.adapters.changes import Changes
from loramux_server.services.adapters.chunks import Chunks
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.pins import Pins
from loramux_server.services.adapters.residency import ResidencyService
from loramux_server.services.adapters.seals import FoundSeals
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.uploads import UploadService
from loramux_server.services.calls import Calls
from loramux_server.services.generation.images import ImageLimits, Preparer
from loramux_server.services.generation.service import GenerationService
from loramux_server.services.open_inference import OpenInferenceService
from loramux_server.services.pooling.classification import ClassificationService
from loramux_server.services.pooling.embedding import EmbeddingService
from loramux_server.services.pooling.question_answering import QuestionAnsweringService
from loramux_server.services.pooling.readings import Readings
from loramux_server.services.prompts import Prompts
from loramux_server.services.quarantine import QuarantineService
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.server import ServerService
from loramux_server.sources.policy import Sources
from loramux_server.statuses import Statuses
from loramux_server.store.alias import Move
from loramux_server.store.check import ServedBase
from loramux_server.store.instructions import Instructions
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import full_name
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from loramux_server.store.writing import ADDED, REMOVED, UPDATED
from loramux_server.waiting_room.limits import RoomLimits
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.messages import Report
from loramux_server.wire.model_info import ModelInfo

_KINDS = {
    ADDED: adapters_pb2.ADAPTER_CHANGE_REGISTERED,
    UPDATED: adapters_pb2.ADAPTER_CHANGE_UPDATED,
    REMOVED: adapters_pb2.ADAPTER_CHANGE_DELETED,
}


@dataclass(frozen=True, slots=True)
class Services:
    """What answers calls, and what of it is told of the engine, the registry and of time."""

    by_descriptor: Mapping[ServiceDescriptor, object]
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

    def report(self, report: Report) -> None:
        """Take in what one step of the engine had to tell."""
        self.seals.report(report)
        self.statuses.report(report)
        self.room.report(report.stats)
        self.spans.report(report)

    def follow(self, registry: Registry, loop: asyncio.AbstractEventLoop) -> None:
        """Take in, on `loop`, what happens to the versions of `registry` from now on."""

        def happened(what: str, record: AdapterRecord) -> None:
            if what == REMOVED:
                self.pins.forget(record)
                if not registry.versions(record.full_name):
                    self.metrics.labels.forget(record.full_name)
            self.changes.tell(_KINDS[what], [record])

        def moved(move: Move) -> None:
            versions = {*move.before.versions, *move.after.versions}
            found = registry.versions(full_name(move.tenant, move.name))
            self.changes.tell(_KINDS[UPDATED], [r for r in found if r.version in versions])

        def elsewhere(digest: str) -> None:
            moved_kind = adapters_pb2.ADAPTER_CHANGE_MOVED
            self.changes.tell(moved_kind, registry.with_digest(digest))

        registry.follow(lambda what, record: loop.call_soon_threadsafe(happened, what, record))
        registry.aliases.on_move = lambda move: loop.call_soon_threadsafe(moved, move)
        self.statuses.on_move = elsewhere


def build_services(
    *,
    registry: Registry,
    engine: EngineClient,
    model: ModelInfo,
    base: ServedBase,
    sources: Sources,
    metrics: Metrics,
    quotas: Quotas,
    audit: Audit,
    is_ready: Callable[[], bool],
    preparer: Preparer | None,
    config: ServerConfig,
) -> Services:
    """Return the services of a server of `model`.

    Args:
        registry: Its adapters.
        engine: Does what is asked.
        model: The base model.
        base: The same, as adapters are compared with it.
        sources: Where adapters may be imported from.
        metrics: What happens is counted there.
        quotas: What tenants may use.
        audit: The log of acts.
        is_ready: Says what health checks do.
        preparer: Makes of images what the model takes of them; None where none are taken.
        config: The settings.
    """
    statuses = Statuses(lambda digest: bool(registry.with_digest(digest)))
    descriptions = Descriptions(registry, statuses, model)
    changes = Changes(descriptions)
    pins = Pins(registry, engine, base)
    chunks = Chunks(config.upload_idle_timeout, config.min_upload_rate)
    intake = Intake(
        registry=registry,
        engine=engine,
        model=model,
        base=base,
        max_upload_bytes=config.max_upload,
    )
    lag = LoopLag()
    room = _waiting_room(model, config, metrics, lag)
    spans = RequestSpans()
    prompts = Prompts(model, adapter_templates=config.adapter_templates, preparer=preparer)
    calls, instructions = Calls(metrics, quotas, room), Instructions()
    generation = GenerationService(
        engine=engine,
        registry=registry,
        model=model,
        calls=calls,
        statuses=statuses,
        prompts=prompts,
        quotas=quotas,
        room=room,
        instructions=instructions,
        spans=spans,
        images=ImageLimits(config.max_images, config.max_image_bytes),
        default_timeout=config.default_timeout,
        stream_interval=config.stream_interval,
    )
    readings = Readings(
        engine=engine,
        registry=registry,
        model=model,
        calls=calls,
        statuses=statuses,
        texts=prompts.texts,
        quotas=quotas,
        room=room,
        instructions=instructions,
        spans=spans,
        default_timeout=config.default_timeout,
    )
    adapters = AdapterService(
        intake=intake,
        imports=Imports(intake, sources, config.max_upload),
        descriptions=descriptions,
        statuses=statuses,
        metrics=metrics,
        chunks=chunks,
        changes=changes,
    )
    residency = ResidencyService(intake=intake, pins=pins, descriptions=descriptions)
    uploads = UploadService(
        intake=intake,
        uploads=Uploads(registry, config.upload_expiry),
        descriptions=descriptions,
        metrics=metrics,
        chunks=chunks,
    )
    open_inference = OpenInferenceService(
        generation=generation,
        registry=registry,
        quarantine=engine.quarantine,
        model=model,
        metrics=metrics,
        is_ready=is_ready,
    )
    quarantine = QuarantineService(engine.quarantine, registry, audit)
    return Services(
        {
            generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]: generation,
            classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"]: (
                ClassificationService(readings)
            ),
            embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]: EmbeddingService(
                readings
            ),
            question_answering_pb2.DESCRIPTOR.services_by_name["QuestionAnsweringService"]: (
                QuestionAnsweringService(readings)
            ),
            adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"]: adapters,
            uploads_pb2.DESCRIPTOR.services_by_name["UploadService"]: uploads,
            residency_pb2.DESCRIPTOR.services_by_name["ResidencyService"]: residency,
            aliases_pb2.DESCRIPTOR.services_by_name["AliasService"]: AliasService(registry),
            quarantine_pb2.DESCRIPTOR.services_by_name["QuarantineService"]: quarantine,
            server_pb2.DESCRIPTOR.services_by_name["ServerService"]: ServerService(
                model, config, metrics.totals
            ),
            open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]: open_inference,
        },
        uploads,
        FoundSeals(registry),
        statuses,
        pins,
        changes,
        metrics,
        prompts,
        room,
        spans,
        lag,
    )


def _waiting_room(
    model: ModelInfo, config: ServerConfig, metrics: Metrics, lag: LoopLag
) -> WaitingRoom:
    metrics.room.lag.set_function(lambda: lag.seconds)
    limits = RoomLimits(
        max_running=model.max_running,
        max_waiting=config.max_waiting,
        max_tokens=config.max_waiting_tokens,
        max_bytes=config.max_waiting_bytes,
        max_lag=config.max_lag,
        block_size=config.block_size,
        num_blocks=model.num_blocks,
    )
    return WaitingRoom(limits, metrics=metrics.room, clock=time.monotonic, lag=lambda: lag.seconds)
