"""Construction and wiring of all services."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas
from loramux_server.config import ServerConfig
from loramux_server.engine_link.client import EngineClient
from loramux_server.images.messages import Setup
from loramux_server.images.preparer import Preparer
from loramux_server.metrics.loop_lag import LoopLag
from loramux_server.metrics.series import Metrics
from loramux_server.observe.audit import Audit
from loramux_server.origins import Origins
from loramux_server.served_names import SharedNames
from loramux_server.services.adapters.aliases import AliasService
from loramux_server.services.adapters.changes import Changes
from loramux_server.services.adapters.chunks import Chunks
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.pins import Pins
from loramux_server.services.adapters.residency import ResidencyService
from loramux_server.services.adapters.resolving import Resolver
from loramux_server.services.adapters.seals import FoundSeals
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.uploads import UploadService
from loramux_server.services.calls import Calls
from loramux_server.services.generation.completion_limits import CompletionLimits
from loramux_server.services.generation.images import ImageLimits, max_images
from loramux_server.services.generation.service import GenerationService
from loramux_server.services.observer import Observer
from loramux_server.services.open_inference import OpenInferenceService
from loramux_server.services.pooling.classification import ClassificationService
from loramux_server.services.pooling.embedding import EmbeddingService
from loramux_server.services.pooling.question_answering import QuestionAnsweringService
from loramux_server.services.pooling.runner import PoolingRunner
from loramux_server.services.prompts import Prompts
from loramux_server.services.quarantine import QuarantineService
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.server import ServerService
from loramux_server.services.services import Services
from loramux_server.services.tokenization import TokenizationService
from loramux_server.statuses import Statuses
from loramux_server.store.package_settings import PackageSettingsCache
from loramux_server.store.registry import Registry
from loramux_server.store.served_base import ServedBase
from loramux_server.store.uploads import Uploads
from loramux_server.transport.rpc import Service
from loramux_server.waiting_room.limits import RoomLimits
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.model_info import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What services depend on and do not create themselves."""

    registry: Registry
    engine: EngineClient
    model: ModelInfo
    base: ServedBase
    """The base model, in the form that adapters are checked against."""
    origins: Origins
    """Where adapters come from."""
    metrics: Metrics
    quotas: Quotas
    """Limits of tenants."""
    audit: Audit
    is_ready: Callable[[], bool]
    """Whether health checks report SERVING."""
    config: ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What several services share."""

    statuses: Statuses
    prompts: Prompts
    room: WaitingRoom
    calls: Calls
    package_settings: PackageSettingsCache
    spans: RequestSpans


def build_services(parts: Parts) -> Services:
    """Return all services of a server, built from `parts`."""
    registry, metrics = parts.registry, parts.metrics
    lag = LoopLag()
    room = _waiting_room(parts, lag)
    shared = _Shared(
        statuses=Statuses(lambda digest: bool(registry.with_digest(digest))),
        prompts=Prompts(
            parts.model,
            adapter_templates=parts.config.adapter_templates,
            preparer=_preparer(parts),
        ),
        room=room,
        calls=Calls(metrics, parts.quotas, room),
        package_settings=PackageSettingsCache(),
        spans=RequestSpans(),
    )
    descriptions = Descriptions(registry, shared.statuses, parts.model)
    changes = Changes(descriptions)
    pins = Pins(registry, parts.engine, parts.base)
    intake = Intake(
        registry=registry,
        engine=parts.engine,
        model=parts.model,
        base=parts.base,
        signers=parts.origins.signers,
        max_upload_bytes=parts.config.max_upload,
    )
    chunks = Chunks(parts.config.upload_idle_timeout, parts.config.min_upload_rate)
    uploads = UploadService(
        intake=intake,
        uploads=Uploads(registry, parts.config.upload_expiry),
        descriptions=descriptions,
        metrics=metrics,
        chunks=chunks,
    )
    imports = Imports(intake, parts.origins.sources, parts.config.max_upload)
    adapters = AdapterService(
        intake=intake,
        imports=imports,
        descriptions=descriptions,
        statuses=shared.statuses,
        metrics=metrics,
        chunks=chunks,
        changes=changes,
    )
    return Services(
        answering=[
            *_generating(parts, shared),
            *_reading(parts, shared),
            adapters,
            uploads,
            ResidencyService(intake=intake, pins=pins, descriptions=descriptions),
            AliasService(registry),
            QuarantineService(parts.engine.quarantine, registry, parts.audit),
            ServerService(parts.model, parts.config, metrics.totals, lambda: registry.lineage.id),
        ],
        intake=intake,
        resolver=Resolver(
            parts.origins.templates,
            imports,
            registry,
            parts.audit,
            default_timeout=parts.config.default_timeout,
            ttl=parts.config.resolve_ttl,
            on_result=lambda outcome: metrics.resolved.labels(outcome).inc(),
            on_refused=lambda error: Observer(metrics, caller().tenant).ended(error),
        )
        if parts.origins.templates
        else None,
        uploads=uploads,
        seals=FoundSeals(registry),
        statuses=shared.statuses,
        pins=pins,
        changes=changes,
        metrics=metrics,
        prompts=shared.prompts,
        room=room,
        spans=shared.spans,
        lag=lag,
        shared_names=SharedNames(parts.model.names),
    )


def _generating(parts: Parts, shared: _Shared) -> list[Service]:
    """Return the services that generate text."""
    generation = GenerationService(
        engine=parts.engine,
        registry=parts.registry,
        model=parts.model,
        calls=shared.calls,
        statuses=shared.statuses,
        prompts=shared.prompts,
        quotas=parts.quotas,
        room=shared.room,
        package_settings=shared.package_settings,
        spans=shared.spans,
        images=ImageLimits(parts.config.max_images, parts.config.max_image_bytes),
        completions=CompletionLimits.of(parts.config, parts.model),
        default_timeout=parts.config.default_timeout,
        stream_interval=parts.config.stream_interval,
    )
    open_inference = OpenInferenceService(
        generation=generation,
        registry=parts.registry,
        quarantine=parts.engine.quarantine,
        model=parts.model,
        metrics=parts.metrics,
        is_ready=parts.is_ready,
    )
    tokenization = TokenizationService(
        generation=generation,
        calls=shared.calls,
        prompts=shared.prompts,
        package_settings=shared.package_settings,
        registry=parts.registry,
        model=parts.model,
        default_timeout=parts.config.default_timeout,
    )
    return [generation, open_inference, tokenization]


def _reading(parts: Parts, shared: _Shared) -> list[Service]:
    """Return the services that only read texts."""
    runner = PoolingRunner(
        engine=parts.engine,
        registry=parts.registry,
        model=parts.model,
        calls=shared.calls,
        statuses=shared.statuses,
        texts=shared.prompts.texts,
        quotas=parts.quotas,
        room=shared.room,
        package_settings=shared.package_settings,
        spans=shared.spans,
        default_timeout=parts.config.default_timeout,
    )
    return [
        ClassificationService(runner),
        EmbeddingService(runner),
        QuestionAnsweringService(runner),
    ]


def _preparer(parts: Parts) -> Preparer | None:
    """Return what prepares images for the model; None if images are not accepted."""
    if not max_images(parts.model, parts.config):
        return None
    config = parts.config
    return Preparer(Setup(config.model, config.max_image_pixels), revision=config.revision)


def _waiting_room(parts: Parts, lag: LoopLag) -> WaitingRoom:
    model, config, metrics = parts.model, parts.config, parts.metrics.room
    metrics.lag.set_function(lambda: lag.seconds)
    limits = RoomLimits(
        max_running=model.max_running,
        max_waiting=config.max_waiting,
        max_tokens=config.max_waiting_tokens,
        max_bytes=config.max_waiting_bytes,
        max_lag=config.max_lag,
        block_size=config.block_size,
        num_blocks=model.num_blocks,
    )
    return WaitingRoom(limits, metrics=metrics, clock=time.monotonic, lag=lambda: lag.seconds)
