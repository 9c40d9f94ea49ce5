"""A model of a real shape, generated on the device and served by an engine in this process."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from transformers import LlamaForCausalLM

from benchmarks.fixture import Shape
from benchmarks.gpu.adapter_files import AdapterFiles
from benchmarks.local_engine import GREEDY, LocalEngine
from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.sampling import Sampling

_BLOCK = 16
_MARGIN = 256
"""Additional tokens of a context beyond its initial ones."""
_SHORT = 32
"""Prompt length where it does not matter."""
_MOST_RUNS = 5
"""Warm-up steps, and warm-up prompts."""
_MOST_SECONDS = 3.0
"""Time limit of a measurement: slow steps need fewer samples."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """The launches of one kernel in a step."""

    name: str
    launches: float
    microseconds: float
    """Total of all launches."""

    @property
    def is_copy(self) -> bool:
        """Whether it is a memory copy or fill rather than a kernel."""
        return self.name.startswith(("Memcpy", "Memset"))


class Served:
    """An engine with room for `batch` contexts, and for as many adapters of `most_rank`."""

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        files: AdapterFiles,
        *,
        batch: int,
        context: int,
        steps: int,
        most_rank: int,
    ) -> None:
        """Create model and engine, with adapters of `files`; times are medians of `steps`."""
        self._files = files
        self._context = context
        self._steps = steps
        self._runs = min(steps, _MOST_RUNS)
        base = prepare(make_model(shape, device, dtype_of(device)))
        item_bytes = base.dtype.itemsize
        row_bytes = item_bytes * sum(group.shape.row_weights for group in base.groups)
        room = context + _MARGIN
        config = EngineConfig(
            model="", max_running=batch, block_size=_BLOCK, prefix_cache=False, max_stall=0,
            max_batch_tokens=2048, max_context=max(room, 2048 + _MARGIN),
            adapter_memory=row_bytes * batch * most_rank, host_adapter_memory=64 << 30,
            kv_memory=batch * room * shape.kv_bytes // 4 * item_bytes,
        )  # fmt: skip
        self._engine = LocalEngine(base, config)
        self._rows: dict[str, int] = {}
        """Digest -> rank rows of each adapter that was loaded to the device."""

    def step(
        self, batch: int, adapters: Sequence[AdapterSource], sampling: Sampling = GREEDY
    ) -> float:
        """Return the seconds of a decode step of `batch` requests for `adapters` in turn."""
        with self._decoding(batch, adapters, sampling):
            return median(self._engine.time_steps(self._steps, _MOST_SECONDS))

    def kernels(self, batch: int, adapters: Sequence[AdapterSource]) -> list[KernelTime]:
        """Return the kernels of such a step, slowest first."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with (
            self._decoding(batch, adapters, GREEDY),
            torch.profiler.profile(activities=activities) as profiler,
        ):
            self._engine.time_steps(self._runs)
        found: dict[str, list[float]] = {}
        for event in profiler.events() or ():
            if event.device_type == torch._C._autograd.DeviceType.CUDA:
                found.setdefault(event.name, []).append(event.device_time)
        times = [
            KernelTime(name, len(times) / self._runs, sum(times) / self._runs)
            for name, times in found.items()
        ]
        return sorted(times, key=lambda kernel: -kernel.microseconds)

    def prefill(self, tokens: int, adapter: AdapterSource | None) -> float:
        """Return the seconds to the first token of a prompt of `tokens` tokens."""
        self._make_room([adapter] if adapter else [])
        self._engine.answer(tokens, [adapter])
        return median(self._engine.answer(tokens, [adapter]) for _ in range(self._runs))

    def load(self, adapters: Sequence[AdapterSource]) -> float:
        """Load `adapters` to the device and return the seconds that it took."""
        self._make_room(adapters)
        return self._engine.answer(_SHORT, adapters)

    def most_like(self, adapter: AdapterSource) -> int:
        """Return how many adapters like this one fit the device."""
        return self._engine.info.adapter_rows // self._engine.rows_of(adapter)

    def displaced(self, rank: int, count: int) -> list[AdapterSource]:
        """Return `count` adapters of `rank` that others have evicted from the device."""
        (source,) = self._files.sources(rank, 1)
        sources = self._files.sources(rank, self.most_like(source) + count)
        self.load(sources[:-count])
        self._note(sources)
        for part in (sources[count:-count], sources[-count:]):  # those that stay come first
            self._engine.answer(_SHORT, part)
        return sources[:count]

    def missed(self, adapter: AdapterSource, *, on_disk: bool) -> float:
        """Return the seconds to the first token of `adapter`, wherever its weights are.

        With `on_disk` they are evicted from memory before, and their files from the page cache.
        """
        self._note([adapter])
        if on_disk:
            self._engine.forget([adapter.digest])
            descriptor = os.open(adapter.path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return self._engine.answer(_SHORT, [adapter])

    def close(self) -> None:
        """Free the device memory."""
        self._engine.close()
        del self._engine
        torch.cuda.empty_cache()

    @contextmanager
    def _decoding(
        self, batch: int, adapters: Sequence[AdapterSource], sampling: Sampling
    ) -> Iterator[None]:
        """Decode for `adapters` in turn while the block runs."""
        self.load(adapters)  # otherwise contexts would grow while waiting for others' adapters
        try:
            self._engine.fill(batch, adapters, self._context, sampling)
            # The graph of a kind of step is captured when it first occurs.
            self._engine.time_steps(self._runs, _MOST_SECONDS)
            yield
        finally:
            self._engine.clear()

    def _make_room(self, adapters: Sequence[AdapterSource]) -> None:
        """Evict all adapters if some would have to be, so that these are laid out as if alone.

        Free space between others may be too fragmented, and then they would wait forever.
        """
        self._note(adapters)
        if sum(self._rows.values()) > self._engine.info.adapter_rows:
            self._engine.forget(self._rows)
            self._rows.clear()
            self._note(adapters)

    def _note(self, adapters: Sequence[AdapterSource]) -> None:
        for adapter in adapters:
            self._rows[adapter.digest] = self._engine.rows_of(adapter)


def dtype_of(device: torch.device) -> torch.dtype:
    """Return the data type of models on `device`."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model with random weights, generated on its device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(before)
