"""How many KV blocks and recurrent states fit into memory."""

import logging
from dataclasses import dataclass

from loramux_server.kernels.states import BEGINNING
from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KvRoom:
    """Room for the contexts of requests, per process under tensor parallelism."""

    memory: int
    """Bytes of all of it. An engine with this `kv_memory` has the same room."""
    num_blocks: int
    """KV blocks."""
    num_states: int
    """Recurrent states of requests; 0 without recurrent layers."""
    max_running: int
    """Requests that run at once."""

    @staticmethod
    def of(
        model: BaseModel, config: EngineConfig, sizes: EngineSizes, context_length: int
    ) -> "KvRoom":
        """Return the room for `model`, with requests of at most `context_length` tokens.

        Args:
            model: The base model.
            config: Its settings; if `kv_memory` is auto, no more is taken than can be used.
            sizes: The engine's sizes; `kv_memory` is the maximum if the config says auto.
            context_length: Tokens of a request.

        Raises:
            UnservableModelError: Nothing fits.
        """
        wanted = sizes.max_running * -(-context_length // config.block_size)
        weights = sum(shape.weights for shape in model.cache_shapes)
        block_bytes = config.block_size * model.dtype.itemsize * weights
        memory = config.kv_memory or _own_memory(model, sizes, wanted * block_bytes, block_bytes)
        num_states = _num_states(model, sizes, memory)
        max_running = min(sizes.max_running, num_states or sizes.max_running)
        if not block_bytes:  # no layer has a KV cache
            return KvRoom(memory, wanted, num_states, max_running)
        room = memory - _state_bytes(model, num_states)
        if room < block_bytes:
            raise UnservableModelError(
                f"kv_memory of {memory} bytes is too small for a block of {block_bytes} bytes"
            )
        return KvRoom(memory, room // block_bytes, num_states, max_running)


def _own_memory(model: BaseModel, sizes: EngineSizes, wanted: int, least: int) -> int:
    """Return the bytes to take if `kv_memory` is auto.

    Args:
        model: The base model.
        sizes: The engine's sizes; its `kv_memory` is the maximum, unless `least` is more.
        wanted: Bytes of all the KV blocks that can be of use.
        least: Bytes of one block.
    """
    states = _state_bytes(model, _most_states(sizes)) if model.recurrent.states else 0
    # States take at most half of it.
    return max(least, min(max(wanted, states) + states, sizes.kv_memory))


def _num_states(model: BaseModel, sizes: EngineSizes, memory: int) -> int:
    slot_bytes = model.recurrent.slot_bytes
    if not slot_bytes:
        return 0
    count = min(_most_states(sizes), memory // 2 // slot_bytes - 1)
    if count < 2:
        raise UnservableModelError(
            f"kv_memory of {memory} bytes is too small: half of it must hold 3 states of recurrent "
            f"layers, of {slot_bytes} bytes each"
        )
    if count < sizes.max_running:
        _log.warning(
            "max_running is lowered to %d from %d: the recurrent state of a request takes %d "
            "bytes, and at most half of kv_memory (%d bytes) is for states",
            count,
            sizes.max_running,
            slot_bytes,
            memory,
        )
    return count


def _most_states(sizes: EngineSizes) -> int:
    """Return how many states can be of use: for running requests, and as many kept for reuse."""
    return 2 * sizes.max_running


def _state_bytes(model: BaseModel, count: int) -> int:
    """Return the bytes of `count` states and the initial one."""
    return (BEGINNING + 1 + count) * model.recurrent.slot_bytes if count else 0
