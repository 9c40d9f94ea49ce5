"""Chooses the sizes that a config leaves at auto, by the memory that is free.

On a CPU little is taken by default: the host has other users. On a GPU nearly everything is, as far
as it is of use.
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
"""Most bytes of the device tier of adapters on a CPU."""
_MOST_BESIDE_CPU, _MOST_BESIDE_GPU = 4 << 30, 64 << 30
"""Most bytes of the host tier, which holds packed adapters."""
_MOST_ROWS = 1 << 15
"""Most float32 rank rows on a GPU: 4,096 adapters of rank 16 in 16 bits. More is of little use."""
_LEAST_ROWS = 32
"""Fewest float32 rank rows on a GPU, if they fit into half of what is left."""
_SPARE_PARTS = 10
"""At least 1 / _SPARE_PARTS of a GPU is left for libraries and weights in transit."""
_GRAPHS = 1 << 30
"""Bytes of all CUDA graphs."""
_ACTIVATIONS = 4
"""How often a step has the widest layer's inputs and outputs in memory."""
_LOGITS = 8
"""The same for float32 logits: original, adjusted, sorted with their tokens, cumulated."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Free memory once the base model is loaded, and the sizes of what needs it, in bytes."""

    is_gpu: bool
    device: int
    """Free memory of the device; on a CPU, one process's share of it."""
    host: int
    """Host memory that this process may still allocate."""
    row_bytes: int
    """Size of a rank row in float32."""
    token_bytes: int
    """Size of the widest layer's input and output for one token."""
    logits_bytes: int
    """Size of a row of logits in float32."""

    @staticmethod
    def of(model: BaseModel) -> "Resources":
        """Measure the free memory of the device and host of `model`."""
        host = free_memory()
        is_gpu = model.device.type == "cuda"
        device = host // model.shard.count
        if is_gpu:
            torch.cuda.empty_cache()  # what loading allocated and freed
            device = int(torch.cuda.mem_get_info(model.device)[0])
        shapes = [group.shape for group in model.groups]
        widest = max((shape.in_features + sum(shape.out_features) for shape in shapes), default=0)
        return Resources(
            is_gpu=is_gpu,
            device=device,
            host=host,
            row_bytes=row_bytes(shapes),
            token_bytes=widest * model.dtype.itemsize,
            logits_bytes=model.vocab_size * torch.float32.itemsize,
        )


def choose(config: EngineConfig, resources: Resources) -> EngineSizes:
    """Return the sizes of `config`, with those at auto chosen; then `kv_memory` is a maximum.

    If all are auto, together they fit into the free memory.
    """
    return _on_gpu(config, resources) if resources.is_gpu else _on_cpu(config, resources)


def _on_cpu(config: EngineConfig, resources: Resources) -> EngineSizes:
    return EngineSizes(
        max_running=config.max_running or _CPU_RUNNING,
        max_batch_tokens=config.max_batch_tokens or _CPU_BATCH_TOKENS,
        kv_memory=config.kv_memory or resources.device // 4,
        adapter_memory=config.adapter_memory or min(_MOST_ON_CPU, resources.device // 8),
        host_adapter_memory=(
            config.host_adapter_memory or min(_MOST_BESIDE_CPU, resources.host // 4)
        ),
    )


def _on_gpu(config: EngineConfig, resources: Resources) -> EngineSizes:
    max_running = config.max_running or _GPU_RUNNING
    max_batch_tokens = config.max_batch_tokens or _GPU_BATCH_TOKENS
    needed = (
        (0 if config.enforce_eager else _GRAPHS)
        + _ACTIVATIONS * max_batch_tokens * resources.token_bytes
        + _LOGITS * max_running * resources.logits_bytes
    )
    # On a nearly full device steps get half: it may suffice, and the rest is needed as well.
    spare = max(resources.device // _SPARE_PARTS, min(needed, resources.device // 2))
    room = resources.device - spare
    adapters = config.adapter_memory
    if not adapters:
        wanted = max(room // 4, min(_LEAST_ROWS * resources.row_bytes, room // 2))
        left = max(0, room - config.kv_memory)
        adapters = min(wanted, left, _MOST_ROWS * resources.row_bytes)
    return EngineSizes(
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        kv_memory=config.kv_memory or max(0, room - adapters),
        adapter_memory=adapters,
        host_adapter_memory=(
            config.host_adapter_memory or min(_MOST_BESIDE_GPU, resources.host // 4)
        ),
    )
