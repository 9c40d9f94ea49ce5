"""ServerService: information about this server, and its load."""

import time
from collections.abc import Callable

from loramux import __version__
from loramux.v1 import server_pb2
from loramux_server.config import ServerConfig
from loramux_server.metrics.totals import Totals
from loramux_server.services.generation.images import max_images
from loramux_server.transport.connection_limits import message_bytes
from loramux_server.transport.rpc import Context
from loramux_server.wire.messages import CacheStats
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.model_kind import ModelKind

_KINDS = {
    ModelKind.DECODER: server_pb2.BASE_MODEL_KIND_DECODER,
    ModelKind.ENCODER: server_pb2.BASE_MODEL_KIND_ENCODER,
    ModelKind.SEQ2SEQ: server_pb2.BASE_MODEL_KIND_SEQ2SEQ,
}


class ServerService:
    """Implements `loramux.v1.ServerService`."""

    descriptor = server_pb2.DESCRIPTOR.services_by_name["ServerService"]

    def __init__(
        self,
        model: ModelInfo,
        config: ServerConfig,
        totals: Totals,
        lineage: Callable[[], str] = lambda: "",
    ) -> None:
        self._num_blocks = model.num_blocks
        self._sizes = model.sizes
        self._totals = totals
        self._lineage = lineage
        self._begin = time.monotonic()
        self._response = server_pb2.GetServerInfoResponse(
            version=__version__,
            base_model=server_pb2.BaseModel(
                name=model.name,
                architecture=model.architecture,
                fingerprint=model.fingerprint,
                dtype=model.dtype,
                device=model.device,
                context_length=model.context_length,
                vocab_size=model.vocab_size,
                has_tokenizer=model.tokenizer_json is not None,
                num_parameters=model.num_parameters,
                has_chat_template=model.chat_template is not None,
                kind=_KINDS[model.kind],
                source_length=model.source_length,
                aliases=model.aliases,
            ),
            max_running_requests=model.max_running,
            max_upload_bytes=config.max_upload,
            max_images=max_images(model, config),
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
            max_request_bytes=message_bytes(max_images(model, config), config.max_image_bytes),
        )

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: Context
    ) -> server_pb2.GetServerInfoResponse:
        """Describe the server and its base model."""
        self._response.lineage = self._lineage()
        return self._response

    async def GetServerLoad(
        self, request: server_pb2.GetServerLoadRequest, context: Context
    ) -> server_pb2.GetServerLoadResponse:
        """Return the current load, and totals since the start."""
        totals, engine, sizes = self._totals, self._totals.engine, self._sizes
        return server_pb2.GetServerLoadResponse(
            uptime_seconds=time.monotonic() - self._begin,
            running_requests=engine.running,
            waiting_requests=engine.waiting,
            kv_blocks=self._num_blocks,
            kv_blocks_used=engine.used_blocks,
            device=_tier(engine.device, sizes.adapter_memory),
            host=_tier(engine.host, sizes.host_adapter_memory),
            requests=totals.requests,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            first_tokens=totals.first_tokens,
            first_token_seconds=totals.first_token_seconds,
            gaps=totals.gaps,
            gap_seconds=totals.gap_seconds,
            steps=totals.steps,
            step_seconds=totals.step_seconds,
            step_requests=totals.step_requests,
            step_adapters=totals.step_adapters,
        )


def _tier(stats: CacheStats, capacity: int) -> server_pb2.TierLoad:
    return server_pb2.TierLoad(
        adapters=stats.resident,
        bytes=stats.used_bytes,
        capacity_bytes=capacity,
        hits=stats.hits,
        misses=stats.misses,
        evictions=stats.evictions,
        reloads=stats.reloads,
    )
