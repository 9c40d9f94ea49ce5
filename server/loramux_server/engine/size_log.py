"""Logs the sizes of an engine."""

import logging

import msgspec

from loramux_server.engine.allowance import all_memory
from loramux_server.engine.kv_room import KvRoom
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.slab import row_bytes
from loramux_server.models.base_model import BaseModel
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes
from loramux_server.wire.weight_format import StorageFormat

_log = logging.getLogger(__name__)
_RANK = 16
_SAVED_BYTES = 2
"""Bytes per weight in most adapters."""


def log_sizes(
    model: BaseModel,
    config: EngineConfig,
    sizes: EngineSizes,
    room: KvRoom,
    row_size: RowSize,
    num_rows: int,
    storage_format: StorageFormat,
) -> None:
    """Log the sizes of an engine, and how many adapters of a usual size fit.

    Args:
        model: The base model.
        config: The config before sizes were chosen.
        sizes: The sizes in effect.
        room: Room for KV blocks and recurrent states.
        row_size: The size of a rank row.
        num_rows: Rank rows on the device.
        storage_format: Storage format of adapters.
    """
    item_bytes = storage_format.item_bytes(_SAVED_BYTES)
    on_device = num_rows // row_size.rows_of(_RANK, item_bytes)
    adapter_bytes = _RANK * row_bytes([group.whole for group in model.groups], item_bytes)
    on_host = sizes.host_adapter_memory // adapter_bytes
    kv_tokens = room.num_blocks * config.block_size
    chosen = [name for name in EngineSizes.__struct_fields__ if not getattr(config, name)]
    fields = {
        **msgspec.structs.asdict(sizes),
        "max_running": room.max_running,
        "kv_tokens": kv_tokens,
        "device_adapters": on_device,
        "host_adapters": on_host,
        "chosen": chosen,
    }
    _log.info(
        "max_running %d, max_batch_tokens %d, kv_memory %s (%d tokens), adapter_memory %s and "
        "host_adapter_memory %s (%d and %d adapters of rank %d on all layers); chosen here: %s",
        room.max_running,
        sizes.max_batch_tokens,
        _shown(sizes.kv_memory),
        kv_tokens,
        _shown(sizes.adapter_memory),
        _shown(sizes.host_adapter_memory),
        on_device,
        on_host,
        _RANK,
        ", ".join(chosen) or "none",
        extra={"fields": fields},
    )
    if sizes.host_adapter_memory > all_memory():
        _log.warning(
            "host_adapter_memory (%d bytes) exceeds all memory available on the host (%d bytes)",
            sizes.host_adapter_memory,
            all_memory(),
        )


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.3g} GiB"
