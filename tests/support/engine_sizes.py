"""Sizes of engines that are not real."""

from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes


def sizes_of(config: EngineConfig | None = None, *, free: int = 8) -> EngineSizes:
    """The sizes of `config`, and in place of what it leaves open `free` bytes and usual numbers."""
    config = config or EngineConfig(model="")
    return EngineSizes(
        max_running=config.max_running or 64,
        max_batch_tokens=config.max_batch_tokens or 512,
        kv_memory=config.kv_memory or free,
        adapter_memory=config.adapter_memory or free,
        host_adapter_memory=config.host_adapter_memory or free,
    )
