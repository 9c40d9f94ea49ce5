"""How large an engine is."""

import msgspec
from msgspec import Struct

from loramux_server.wire.engine_config import EngineConfig


class EngineSizes(Struct, frozen=True, kw_only=True):
    """The sizes that an `EngineConfig` may leave open; an engine that is given them has the same.

    Bytes are of each process that holds a part of the model, but those of the host.
    """

    max_running: int
    """Requests that are wanted at once."""
    max_batch_tokens: int
    kv_memory: int
    """Bytes for KV blocks and states."""
    adapter_memory: int
    host_adapter_memory: int

    def in_config(self, config: EngineConfig) -> EngineConfig:
        """Return `config` with these sizes."""
        return msgspec.structs.replace(config, **msgspec.structs.asdict(self))
