"""The memory and batch sizes of an engine."""

import msgspec
from msgspec import Struct

from loramux_server.wire.engine_config import EngineConfig


class EngineSizes(Struct, frozen=True, kw_only=True):
    """The sizes that a config may leave at auto. An engine whose config sets them has the same.

    Bytes are per process under tensor parallelism, except those of the host.
    """

    max_running: int
    """Requests that should run at once; recurrent states may leave room for fewer."""
    max_batch_tokens: int
    kv_memory: int
    """Bytes for KV blocks and recurrent states."""
    adapter_memory: int
    host_adapter_memory: int

    def in_config(self, config: EngineConfig) -> EngineConfig:
        """Return `config` with these sizes."""
        return msgspec.structs.replace(config, **msgspec.structs.asdict(self))
