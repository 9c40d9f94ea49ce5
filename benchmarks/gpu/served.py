"""A model of a real shape, made on the device and served by an engine in this process."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaForCausalLM

from benchmarks.fixture import Shape, make_adapters
from benchmarks.local_engine import LocalEngine, packaged
from loramux_adapters.package import digest_of
from loramux_server.engine.config import EngineConfig
from loramux_server.engine.messages import AdapterSource
from loramux_server.models.base_model import prepare

_BLOCK = 16
_MARGIN = 256
"""Tokens of a context beyond those that it begins with."""
_SHORT = 32
"""Tokens of a prompt where its length is not what counts."""
_MOST_RUNS = 5
"""Steps before those that are measured, and prompts."""


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
        folder: Path,
        batch: int,
        context: int,
        steps: int,
        most_rank: int = 64,
    ) -> None:
        """Make model and engine; adapters are made when they are asked for, in `folder`.

        The median of `steps` steps is taken.
        """
        self.shape = shape
        self.context = context
        self.item_bytes = (dtype := dtype_of(device)).itemsize
        self._steps = steps
        self._runs = min(steps, _MOST_RUNS)
        self._folder = folder
        self._sources: dict[int, list[AdapterSource]] = {}
        base = prepare(make_model(shape, device, dtype))
        row_bytes = self.item_bytes * sum(group.shape.row_weights for group in base.groups)
        room = context + _MARGIN
        config = EngineConfig(
            model="", max_running=batch, block_size=_BLOCK, prefix_cache=False,
            max_batch_tokens=2048, max_context=max(room, 2048 + _MARGIN),
            adapter_memory=row_bytes * batch * most_rank, host_adapter_memory=64 << 30,
            kv_memory=batch * room * shape.kv_bytes // 4 * self.item_bytes,
        )  # fmt: skip
        self._engine = LocalEngine(base, config)

    def sources(self, rank: int, count: int) -> list[AdapterSource]:
        """Return `count` adapters of `rank`, each a file of its own."""
        made = self._sources.setdefault(rank, [])
        if not made:
            folder = self._folder / f"r{rank}"
            name = "bfloat16" if self.item_bytes == torch.bfloat16.itemsize else "float32"
            make_adapters(folder, self.shape, [rank], 1, dtype=name)
            made += packaged(folder)
        while len(made) < count:
            made.append(_another(made[0], len(made)))
        return made[:count]

    def folders(self, rank: int) -> Path:
        """Return the folder in which the PEFT adapter of `rank` lies."""
        self.sources(rank, 1)
        return self._folder / f"r{rank}" / "a0000"

    def step(self, batch: int, rank: int | None, distinct: int) -> float:
        """Return the seconds of a decode step of `batch` requests for `distinct` adapters."""
        return self.steps(batch, self.sources(rank, distinct) if rank else [])

    def steps(self, batch: int, adapters: list[AdapterSource]) -> float:
        """Return the seconds of a decode step of `batch` requests for `adapters` in turn."""
        self._engine.fill(batch, adapters, self.context)
        self._engine.time_steps(self._runs)  # a form of a step is recorded when it first comes up
        seconds = median(self._engine.time_steps(self._steps))
        self._engine.clear()
        return seconds

    def kernels(self, batch: int, rank: int | None, distinct: int) -> list[KernelTime]:
        """Return what a decode step runs, those first that take longest."""
        self._engine.fill(batch, self.sources(rank, distinct) if rank else [], self.context)
        self._engine.time_steps(self._runs)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            self._engine.time_steps(self._runs)
        self._engine.clear()
        found: dict[str, list[float]] = {}
        for event in profiler.events() or ():
            if event.device_type == torch._C._autograd.DeviceType.CUDA:
                found.setdefault(event.name, []).append(event.device_time)
        times = [
            KernelTime(name, len(times) / self._runs, sum(times) / self._runs)
            for name, times in found.items()
        ]
        return sorted(times, key=lambda kernel: -kernel.microseconds)

    def prefill(self, tokens: int, rank: int | None) -> float:
        """Return the seconds to the first token of a prompt of `tokens` tokens."""
        adapter = self.sources(rank, 1)[0] if rank else None
        self._first(tokens, adapter)
        return median(self._first(tokens, adapter) for _ in range(self._runs))

    def visit(self, adapters: list[AdapterSource]) -> None:
        """Answer a request for each of `adapters`, one after the other."""
        for adapter in adapters:
            self._first(_SHORT, adapter)

    def missed(self, adapter: AdapterSource, *, on_disk: bool) -> float:
        """Return the seconds to the first token of `adapter`, which is not on the device.

        Its weights are on the host, or with `on_disk` in a file that no cache of the system holds.
        """
        if on_disk:
            self._engine.forget(adapter)
            descriptor = os.open(adapter.path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return self._first(_SHORT, adapter)

    def close(self) -> None:
        """Give back the memory of the device."""
        self._engine.close()
        del self._engine
        torch.cuda.empty_cache()

    def _first(self, tokens: int, adapter: AdapterSource | None) -> float:
        prompt = [random.randrange(3, self.shape.vocab) for _ in range(tokens)]
        return self._engine.first_token_seconds(prompt, adapter)


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


def _another(source: AdapterSource, number: int) -> AdapterSource:
    """Return a copy of `source` in which one weight is another, so that it is another adapter."""
    path = Path(source.path).with_suffix(f".{number}.package")
    shutil.copyfile(source.path, path)
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(number.to_bytes(2, "little"))
        digest = digest_of(file)
    return AdapterSource(digest, str(path), source.rank, source.num_bytes, source.item_bytes)
