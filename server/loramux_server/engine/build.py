"""EngineConfig -> Engine: load the model, size the memory, put the parts together."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import psutil
import torch

from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.engine import Engine
from loramux_server.engine.messages import AdapterSource, EngineConfig, Layer, ModelInfo
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.engine.pace import Pace
from loramux_server.engine.scheduler import Scheduler
from loramux_server.kernels.backend import Backend, choose_backend
from loramux_server.kernels.resting import Quantization
from loramux_server.lora.adapter_cache import AdapterCache
from loramux_server.lora.packed import PackedAdapter, load_packed
from loramux_server.lora.slab import row_bytes
from loramux_server.lora.weight_format import ROUNDINGS, Resting
from loramux_server.models.base_model import BaseModel, UnservableModelError

_log = logging.getLogger(__name__)


def build_engine(
    model: BaseModel, config: EngineConfig, executor: Executor, wake: Callable[[], None]
) -> tuple[Engine, ModelInfo]:
    """Return an engine that serves `model`, and what to tell the frontend about it.

    Raises:
        UnservableModelError: A memory limit of `config` leaves no room to serve, or its kernels do
            not run on the model's device.
    """
    context_length = min(config.max_context or model.context_length, model.context_length)
    num_blocks = _num_blocks(model, config, context_length)
    context_length = min(context_length, num_blocks * config.block_size)
    shapes = [group.shape for group in model.groups]
    runner = ModelRunner(
        model,
        _backend(config, model.device),
        num_slots=num_blocks * config.block_size,
        adapter_memory=config.adapter_memory,
    )
    _check(runner, model, config)
    resting = runner.slab.resting or Resting(ROUNDINGS[config.adapter_dtype])
    bytes_of_row = row_bytes(shapes, resting.row_item_bytes)
    cache = AdapterCache(
        device_rows=runner.slab.num_rows,
        row_bytes=bytes_of_row,
        host_bytes=config.host_adapter_memory,
        row_item_bytes=resting.row_item_bytes,
    )
    if not cache.rows.capacity:
        raise UnservableModelError(
            f"adapter_memory of {config.adapter_memory} bytes holds no rank row; "
            f"8 of them take {8 * bytes_of_row} bytes"
        )
    scheduler = Scheduler(
        blocks=BlockManager(num_blocks, config.block_size),
        adapters=cache,
        max_running=config.max_running,
        max_batch_tokens=config.max_batch_tokens,
        max_bypassed=config.max_bypassed,
        context_length=context_length,
        eos_token_ids=frozenset(model.eos_token_ids),
        shares_prefixes=config.prefix_cache,
    )
    max_parts = max(shape.num_parts for shape in shapes)

    def load(source: AdapterSource) -> PackedAdapter:
        packed = load_packed(
            Path(source.path), source.digest, model.places, len(shapes), max_parts, resting
        )
        return runner.slab.pack(packed)

    engine = Engine(
        scheduler=scheduler,
        pace=Pace(config.max_stall),
        cache=cache,
        slab=runner.slab,
        runner=runner,
        load_packed=load,
        executor=executor,
        wake=wake,
        block_size=config.block_size,
        eos_token_ids=model.eos_token_ids,
        context_length=context_length,
        max_waiting=config.max_waiting,
        resting=resting,
    )
    return engine, _model_info(
        model, context_length, cache.rows.capacity, resting, num_blocks, config.block_size
    )


def _check(runner: ModelRunner, model: BaseModel, config: EngineConfig) -> None:
    if config.quantization != Quantization.NONE:
        _log.info(
            "weights in %s change the logits by %.2g of their spread",
            config.quantization,
            runner.difference,
        )
    elif not runner.difference <= model.check.tolerance:
        raise UnservableModelError(
            f"kernels {config.kernels!r} compute something else on this machine than the model's "
            f"own forward: logits differ by {runner.difference:.2g} of their spread"
        )


def _backend(config: EngineConfig, device: torch.device) -> Backend:
    try:
        return choose_backend(config.kernels, device, Quantization(config.quantization))
    except ValueError as error:
        raise UnservableModelError(str(error)) from None


def _num_blocks(model: BaseModel, config: EngineConfig, context_length: int) -> int:
    block_bytes = _block_bytes(model, config.block_size)
    if config.kv_memory:
        if config.kv_memory < block_bytes:
            raise UnservableModelError(
                f"kv_memory of {config.kv_memory} bytes holds no block of {block_bytes} bytes"
            )
        return config.kv_memory // block_bytes
    wanted = config.max_running * -(-context_length // config.block_size)
    return max(1, min(wanted, _free_memory(model.device) // 4 // block_bytes))


def _block_bytes(model: BaseModel, block_size: int) -> int:
    return block_size * model.dtype.itemsize * sum(shape.weights for shape in model.cache_shapes)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _model_info(
    model: BaseModel,
    context_length: int,
    adapter_rows: int,
    resting: Resting,
    num_blocks: int,
    block_size: int,
) -> ModelInfo:
    layers = {}
    for name, place in model.places.items():
        shape = model.groups[place.group].shape
        layers[name] = Layer(shape.in_features, shape.out_features[place.part])
    return ModelInfo(
        name=model.name,
        architecture=model.architecture,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        context_length=context_length,
        vocab_size=model.vocab_size,
        num_parameters=model.num_parameters,
        eos_token_ids=model.eos_token_ids,
        tokenizer_json=model.tokenizer_json,
        layers=layers,
        adapter_rows=adapter_rows,
        resting=resting,
        num_blocks=num_blocks,
        kv_memory=num_blocks * _block_bytes(model, block_size),
    )
