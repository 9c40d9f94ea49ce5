"""What an engine has of each thing that its config leaves open, by the memory that is free.

On a CPU little is taken unasked: it has others to serve. On a GPU nearly all is, as far as there is
use for it.
"""

from dataclasses import dataclass

import torch

from loramux_server.engine.allowance import free_memory
from loramux_server.lora.slab import row_bytes
from loramux_server.models.base_model import BaseModel
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes

_CPU_RUNNING, _CPU_BATCH_TOKENS = 64, 512
_GPU_RUNNING, _GPU_BATCH_TOKENS = 256, 2048
_MOST_ON_CPU = 1 << 30
"""Bytes for adapters on a CPU, beside those that are packed."""
_MOST_BESIDE_CPU, _MOST_BESIDE_GPU = 4 << 30, 64 << 30
"""Bytes for those that are packed on the host."""
_MOST_ROWS = 1 << 15
"""Rank rows of float32 on a GPU: 4,096 adapters of rank 16 in 16 bits. More is of little use."""
_LEAST_ROWS = 32
"""Rank rows of float32 that adapters have on a GPU, if they fit half of what is left."""
_SPARE_PARTS = 10
"""Of so many parts of a GPU one is left to libraries and to weights that move, at least."""
_GRAPHS = 1 << 30
"""Bytes of all records of steps."""
_ACTIVATIONS = 4
"""The widest layer's inputs and outputs are in memory so many times while a step computes."""
_LOGITS = 8
"""Logits of float32 likewise: as they came, adjusted, sorted with their tokens, summed up."""


@dataclass(frozen=True, slots=True)
class Means:
    """What there is for an engine once its base model is in place. All but widths are bytes."""

    is_gpu: bool
    device: int
    """Free memory of the device, of a CPU one process's share."""
    host: int
    """Memory of the host that this process may still take."""
    row_bytes: int
    """Of a rank row in float32."""
    token_bytes: int
    """Of a token of a batch while a step computes."""
    logits_bytes: int
    """Of a row of logits in float32."""

    @staticmethod
    def of(model: BaseModel) -> "Means":
        """Return what there is where `model` lies."""
        host = free_memory()
        is_gpu = model.device.type == "cuda"
        device = host // model.shard.count
        if is_gpu:
            torch.cuda.empty_cache()  # of what loading took, and has let go of
            device = int(torch.cuda.mem_get_info(model.device)[0])
        shapes = [group.shape for group in model.groups]
        widest = max((shape.in_features + sum(shape.out_features) for shape in shapes), default=0)
        return Means(
            is_gpu=is_gpu,
            device=device,
            host=host,
            row_bytes=row_bytes(shapes),
            token_bytes=widest * model.dtype.itemsize,
            logits_bytes=model.vocab_size * torch.float32.itemsize,
        )


def choose(config: EngineConfig, means: Means) -> EngineSizes:
    """Return the sizes of `config`, in place of 0 what suits `means`; of KV the most there may be.

    Where nothing is set, all of them together fit what is free.
    """
    return _on_gpu(config, means) if means.is_gpu else _on_cpu(config, means)


def _on_cpu(config: EngineConfig, means: Means) -> EngineSizes:
    return EngineSizes(
        max_running=config.max_running or _CPU_RUNNING,
        max_batch_tokens=config.max_batch_tokens or _CPU_BATCH_TOKENS,
        kv_memory=config.kv_memory or means.device // 4,
        adapter_memory=config.adapter_memory or min(_MOST_ON_CPU, means.device // 8),
        host_adapter_memory=(config.host_adapter_memory or min(_MOST_BESIDE_CPU, means.host // 4)),
    )


def _on_gpu(config: EngineConfig, means: Means) -> EngineSizes:
    max_running = config.max_running or _GPU_RUNNING
    max_batch_tokens = config.max_batch_tokens or _GPU_BATCH_TOKENS
    needed = (
        (0 if config.enforce_eager else _GRAPHS)
        + _ACTIVATIONS * max_batch_tokens * means.token_bytes
        + _LOGITS * max_running * means.logits_bytes
    )
    # Of a device that is nearly full steps have half: that may do, and the rest is needed as well.
    spare = max(means.device // _SPARE_PARTS, min(needed, means.device // 2))
    room = means.device - spare
    adapters = config.adapter_memory
    if not adapters:
        wanted = max(room // 4, min(_LEAST_ROWS * means.row_bytes, room // 2))
        left = max(0, room - config.kv_memory)
        adapters = min(wanted, left, _MOST_ROWS * means.row_bytes)
    return EngineSizes(
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        kv_memory=config.kv_memory or max(0, room - adapters),
        adapter_memory=adapters,
        host_adapter_memory=(config.host_adapter_memory or min(_MOST_BESIDE_GPU, means.host // 4)),
    )
