"""A model of a real shape, made on the device and served by an engine in this process."""

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
"""Tokens of a context beyond those that it begins with."""
_SHORT = 32
"""Tokens of a prompt where its length is not what counts."""
_MOST_RUNS = 5
"""Steps before those that are measured, and prompts."""
_MOST_SECONDS = 3.0
"""Of the steps of a measurement: what is so slow needs no more of them."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """What the launches of one kernel take in a step."""

    name: str
    launches: float
    microseconds: float
    """Of all launches together."""

    @property
    def is_copy(self) -> bool:
        """Whether it is no kernel, but moves or sets memory."""
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
        """Make model and engine; adapters are of `files`, the median of `steps` steps counts."""
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
        """Digest -> rank rows of each adapter that was brought to the device."""

    def step(
        self, batch: int, adapters: Sequence[AdapterSource], sampling: Sampling = GREEDY
    ) -> float:
        """Return the seconds of a decode step of `batch` requests for `adapters` in turn."""
        with self._decoding(batch, adapters, sampling):
            return median(self._engine.time_steps(self._steps, _MOST_SECONDS))

    def kernels(self, batch: int, adapters: Sequence[AdapterSource]) -> list[KernelTime]:
        """Return what such a step runs, those first that take longest."""
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
        """Bring `adapters` to the device and return the seconds that it took."""
        self._make_room(adapters)
        return self._engine.answer(_SHORT, adapters)

    def most_like(self, adapter: AdapterSource) -> int:
        """Return how many adapters like this one the device holds."""
        return self._engine.info.adapter_rows // self._engine.rows_of(adapter)

    def displaced(self, rank: int, count: int) -> list[AdapterSource]:
        """Return `count` adapters of `rank` that have been put out of the device by others."""
        (source,) = self._files.sources(rank, 1)
        sources = self._files.sources(rank, self.most_like(source) + count)
        self.load(sources[:-count])
        self._note(sources)
        for part in (sources[count:-count], sources[-count:]):  # first come those that stay
            self._engine.answer(_SHORT, part)
        return sources[:count]

    def missed(self, adapter: AdapterSource, *, on_disk: bool) -> float:
        """Return the seconds to the first token of `adapter`, wherever its weights are.

        With `on_disk` they are put out of memory before, and out of the system's cache of the file.
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
        """Give back the memory of the device."""
        self._engine.close()
        del self._engine
        torch.cuda.empty_cache()

    @contextmanager
    def _decoding(
        self, batch: int, adapters: Sequence[AdapterSource], sampling: Sampling
    ) -> Iterator[None]:
        """Decode for `adapters` in turn while the block runs."""
        self.load(adapters)  # or contexts would grow while they wait for each other's adapters
        try:
            self._engine.fill(batch, adapters, self._context, sampling)
            # A form of a step is recorded when it first comes up.
            self._engine.time_steps(self._runs, _MOST_SECONDS)
            yield
        finally:
            self._engine.clear()

    def _make_room(self, adapters: Sequence[AdapterSource]) -> None:
        """Let go of all adapters if some would have to, so that these lie where they would alone.

        What is left beside others may lie in pieces too small, and then they would wait for ever.
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
    """Return the number format of models on `device`."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model of random weights, made where it will be."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(before)
