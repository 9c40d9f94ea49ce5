"""All services of a server, put together."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from loramux.v1 import adapters_pb2, aliases_pb2, generation_pb2, server_pb2, uploads_pb2
from loramux_server.config import ServerConfig
from loramux_server.engine.messages import ModelInfo
from loramux_server.engine_client import EngineClient
from loramux_server.metrics import Metrics
from loramux_server.services.adapters import AdapterService
from loramux_server.services.aliases import AliasService
from loramux_server.services.chunks import Chunks
from loramux_server.services.descriptions import Descriptions
from loramux_server.services.generation import GenerationService
from loramux_server.services.intake import Intake
from loramux_server.services.server import ServerService
from loramux_server.services.uploads import UploadService
from loramux_server.store.check import ServedBase
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Services:
    """What answers calls, and what of it is told of the engine and of time."""

    by_descriptor: Mapping[ServiceDescriptor, object]
    descriptions: Descriptions
    uploads: UploadService


def build_services(
    *,
    registry: Registry,
    engine: EngineClient,
    model: ModelInfo,
    base: ServedBase,
    metrics: Metrics,
    config: ServerConfig,
) -> Services:
    """Return the services of a server of `model`."""
    descriptions = Descriptions(registry)
    chunks = Chunks(config.upload_idle_timeout)
    intake = Intake(
        registry=registry,
        engine=engine,
        model=model,
        base=base,
        max_upload_bytes=config.max_upload,
    )
    generation = GenerationService(
        engine=engine,
        registry=registry,
        model=model,
        metrics=metrics,
        default_timeout=config.default_timeout,
    )
    adapters = AdapterService(
        intake=intake, descriptions=descriptions, metrics=metrics, chunks=chunks
    )
    uploads = UploadService(
        intake=intake,
        uploads=Uploads(registry, config.upload_expiry),
        descriptions=descriptions,
        metrics=metrics,
        chunks=chunks,
    )
    return Services(
        {
            generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]: generation,
            adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"]: adapters,
            uploads_pb2.DESCRIPTOR.services_by_name["UploadService"]: uploads,
            aliases_pb2.DESCRIPTOR.services_by_name["AliasService"]: AliasService(registry),
            server_pb2.DESCRIPTOR.services_by_name["ServerService"]: ServerService(model, config),
        },
        descriptions,
        uploads,
    )
