"""EngineConfig and base model -> Engine: sizes the memory and assembles the parts."""

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext

from msgspec.structs import replace

from loramux_server.engine.admission import Admission
from loramux_server.engine.allowance import all_memory
from loramux_server.engine.base import Base
from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.context_length import served_context
from loramux_server.engine.contexts import Contexts
from loramux_server.engine.description import model_info
from loramux_server.engine.ends import Ends
from loramux_server.engine.engine import Engine
from loramux_server.engine.fit import fitting
from loramux_server.engine.image_encoder import ImageEncoder
from loramux_server.engine.kv_room import KvRoom
from loramux_server.engine.loader import AdapterLoader, TeamLoader
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.engine.operations import backend_of, check_runner
from loramux_server.engine.pace import Pace
from loramux_server.engine.residents import Residents, loader_threads
from loramux_server.engine.scheduler import Scheduler
from loramux_server.engine.size_choice import Resources, choose
from loramux_server.engine.size_log import log_sizes
from loramux_server.engine.speculation import Speculation
from loramux_server.engine.state_keeper import StateKeeper
from loramux_server.engine.team import Team
from loramux_server.forms.forms import Forms
from loramux_server.forms.messages import Setup
from loramux_server.kernels.backend import Backend
from loramux_server.kernels.shard_group import sharded
from loramux_server.kernels.states import BEGINNING
from loramux_server.lora.adapter_cache import AdapterCache
from loramux_server.lora.buffer_pool import BufferPool, PinnedMemory
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.shard import UNSHARDED
from loramux_server.lora.slab import row_bytes
from loramux_server.lora.vision_adapter import VisionAdapterCache
from loramux_server.models.base_layers import BaseLayers
from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.weight_format import ROUNDINGS, StorageFormat

_DRAFT_TOKENS = 16
_KEPT_PART = 16
"""Encoder outputs are cached in up to 1 / _KEPT_PART of the KV memory's size, beside it."""
_LEAST_KEPT = 64 << 20
_BUFFERS_FOR_PARTS = 256 << 20
"""Bytes of pinned memory for shards of adapters on their way to a device."""


def make_runner(
    model: BaseModel, config: EngineConfig, backend: Backend, num_slots: int, num_states: int = 0
) -> ModelRunner:
    """Return what runs `model`, or this process's shard of it.

    Args:
        model: The prepared base model.
        config: Its settings, with no size left at auto.
        backend: The operations to use.
        num_slots: Tokens that the KV cache is to hold.
        num_states: Recurrent states to make room for.

    Raises:
        UnservableModelError: The operations compute something else than the model.
    """
    runner = ModelRunner(
        model,
        backend if model.shard == UNSHARDED else sharded(backend),
        num_slots=num_slots,
        num_state_slots=BEGINNING + 1 + num_states,
        adapter_memory=config.adapter_memory,
        buffers=_buffer_pool(model, config),
        records=not config.enforce_eager,
    )
    check_runner(runner, model, config, backend)
    return runner


def storage_format_of(runner: ModelRunner, config: EngineConfig) -> StorageFormat:
    """Return the storage format of adapters."""
    return runner.slab.storage_format or StorageFormat(ROUNDINGS[config.adapter_dtype])


def build_engine(
    model: BaseModel,
    config: EngineConfig,
    executor: Executor,
    wake: Callable[[], None],
    team: Team | None = None,
) -> tuple[Engine, ModelInfo]:
    """Return an engine that serves `model`, and the description of it for the frontend.

    Args:
        model: The prepared base model.
        config: Its settings.
        executor: Runs loads concurrently with steps.
        wake: Called from `executor` when a load is done.
        team: The processes that hold the other shards of `model`, if it is sharded.

    Raises:
        NoRoomError: There is less memory than `config` asks for.
        UnservableModelError: A memory limit of `config` leaves no room to serve, or its kernels do
            not run on the model's device.
    """
    given, backend = config, backend_of(config, model)
    context_length = served_context(model, config)
    resources = Resources.of(model)
    most = choose(given, resources)
    room = KvRoom.of(model, given, most, context_length)
    sizes = replace(most, kv_memory=room.memory)
    config = sizes.in_config(given)
    num_slots = room.num_blocks * config.block_size
    context_length = min(context_length, num_slots)
    allocating = team.allocating(num_slots, sizes) if team else nullcontext()
    with fitting(model, given, sizes, resources.device), allocating:
        runner = make_runner(model, config, backend, num_slots, room.num_states)
    storage_format = storage_format_of(runner, config)
    row_size = RowSize(
        row_bytes([group.shape for group in model.groups], storage_format.row_item_bytes),
        storage_format.row_item_bytes,
    )
    cache = AdapterCache(
        device_rows=runner.slab.num_rows,
        row_size=row_size,
        host_bytes=config.host_adapter_memory,
        eviction=config.eviction,
        max_tenant_share=config.max_tenant_share,
    )
    if not cache.rows.capacity:
        raise UnservableModelError(
            f"adapter_memory of {config.adapter_memory} bytes is too small for any rank row; "
            f"8 rows take {8 * row_size.num_bytes} bytes"
        )
    log_sizes(model, given, sizes, room, row_size, cache.rows.capacity, storage_format)
    source_length = model.source_length * context_length // model.context_length
    ends = Ends(context_length, frozenset(model.eos_token_ids), source_length)
    scheduler = Scheduler(
        contexts=_contexts(model, config, room),
        adapters=cache,
        ends=ends,
        max_running=room.max_running,
        max_batch_tokens=config.max_batch_tokens,
        max_bypassed=config.max_bypassed,
    )
    pace = Pace(config.max_stall)
    admission = Admission(
        scheduler=scheduler,
        pace=pace,
        memory=cache,
        context_length=context_length,
        max_waiting=config.max_waiting,
        most_drafts=_draft_tokens(model, config),
        vocab_size=model.vocab_size,
        source_length=source_length,
    )
    loader = AdapterLoader(
        model, runner.slab, storage_format, is_deterministic=config.deterministic
    )
    no_vision_reason = _no_vision_reason(model, config)
    engine = Engine(
        scheduler=scheduler,
        admission=admission,
        pace=pace,
        residents=Residents(
            cache=cache,
            loader=TeamLoader(loader, team) if team else loader,
            executor=executor,
            wake=wake,
        ),
        image_encoder=ImageEncoder(
            None if no_vision_reason else model.vision, VisionAdapterCache(BaseLayers(model)), wake
        ),
        runner=team.running(runner) if team else runner,
        # Without a GPU the host itself computes the steps.
        starter=runner if runner.slab.storage_format and not team else None,
        base=Base(
            config.block_size,
            model.eos_token_ids,
            model.vocab_size,
            has_encoder=model.encoder_runner is not None,
            storage_format=storage_format,
        ),
        shares_cores=model.device.type == "cpu",
        masks=_mask_provider(model, wake),
        speculation=Speculation(_draft_tokens(model, config), ends),
    )
    if model.encoder_runner and config.prefix_cache:
        model.encoder_runner.set_cache_bytes(max(_LEAST_KEPT, room.memory // _KEPT_PART))
    info = model_info(
        model, context_length, source_length, cache.rows.capacity, row_size, storage_format, room,
        sizes, no_vision_reason,
    )  # fmt: skip
    return engine, info


def _no_vision_reason(model: BaseModel, config: EngineConfig) -> str:
    """Return why `model` takes no images although its architecture could; empty otherwise."""
    if (
        model.vision
        and config.deterministic
        and (model.vision.is_bidirectional or model.vision.adds)
    ):
        # Those round differently, for the other rows of the batch as well.
        return (
            "the server is deterministic, and this model computes steps with images differently "
            "from other steps"
        )
    return model.no_vision_reason


def _buffer_pool(model: BaseModel, config: EngineConfig) -> BufferPool | None:
    """Return the pinned memory from which a GPU copies adapters; None without one."""
    if model.device.type != "cuda":
        return None
    memory = PinnedMemory(model.device)
    if model.shard != UNSHARDED:  # shards of adapters do not stay on the host
        return BufferPool(memory, min(config.host_adapter_memory, _BUFFERS_FOR_PARTS))
    # Buffers may be an eighth larger than their contents.
    most = min(config.host_adapter_memory * 9 // 8, all_memory())
    return BufferPool(memory, most, loader_threads(1, "spare", device=model.device))


def _draft_tokens(model: BaseModel, config: EngineConfig) -> int:
    """Return the maximum number of draft tokens per request."""
    if model.recurrent.states:
        if config.speculative_tokens > 0:
            raise UnservableModelError(
                f"speculative_tokens must be 0, got {config.speculative_tokens}: "
                f"{model.architecture} has recurrent layers, whose state cannot be rolled back"
            )
        return 0
    if model.encoder_runner:
        if config.speculative_tokens > 0:
            raise UnservableModelError(
                f"speculative_tokens must be 0, got {config.speculative_tokens}: speculative "
                f"decoding does not support encoder-decoder models such as {model.architecture}"
            )
        return 0
    if config.speculative_tokens >= 0:
        return config.speculative_tokens
    # On a GPU a step starts before the previous one has ended; drafts would have to wait for it.
    return _DRAFT_TOKENS if model.device.type == "cpu" else 0


def _mask_provider(model: BaseModel, wake: Callable[[], None]) -> Forms | None:
    if not (model.text.tokenizer_json and model.eos_token_ids):
        return None
    return Forms(Setup(model.text.tokenizer_json, model.vocab_size, model.eos_token_ids), wake)


def _contexts(model: BaseModel, config: EngineConfig, room: KvRoom) -> Contexts:
    states = None
    if room.num_states:
        keeps = config.prefix_cache and model.recurrent.supports_continuation
        states = StateKeeper(room.num_states, config.block_size, keeps=keeps)
    blocks = BlockManager(room.num_blocks, config.block_size)
    # Outputs of an encoder are not cached in blocks.
    shares_prefixes = config.prefix_cache and not model.encoder_runner
    return Contexts(blocks, states, shares_prefixes=shares_prefixes)
