"""Performance goals of the engine on a GPU, each with its floor and the measured value.

Ratios are base ÷ with adapters for the same steps: 1 would mean that adapters are free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import torch

from benchmarks.fixture import Shape
from benchmarks.gpu import device as on
from benchmarks.gpu.adapter_files import AdapterFiles
from benchmarks.gpu.load_parts import load_parts
from benchmarks.gpu.served import KernelTime, Served, dtype_of
from benchmarks.local_engine import GREEDY
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.sampling import Sampling

_RANK = 16
_MIXED = (8, 16, 32, 64)
_MISSES = 5
LARGE = {64: 0.48, 16: 0.75}
"""Rank -> goal 6."""
_DRAWN = msgspec.structs.replace(GREEDY, temperature=0.8, top_p=0.9)
"""Logits of random weights are close together: top-p keeps tens of thousands of tokens."""
_DORA_SECONDS = 30.0
"""Seconds for the loads of goal 20, two of which run at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is measured."""

    shape: Shape
    context: int
    """Context length in tokens."""
    batch: int
    """Requests of most goals."""
    large_batch: int
    """Requests of goal 6."""
    large_rank: int
    """Rank of its adapters."""
    prompt: int
    """Prompt length of goal 9 in tokens."""
    steps: int
    """Steps per measurement; medians are reported."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The measured value, its lower bound and its goal."""

    number: int
    what: str
    measured: float
    floor: float | None
    goal: float
    is_limit: bool
    """Whether it should be at most the goal, rather than at least."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A value that can be measured."""

    number: int
    what: str
    measure: Callable[[], float]
    floor: float | None
    goal: float
    is_limit: bool = False

    def measured(self) -> Figure:
        """Measure it."""
        return Figure(self.number, self.what, self.measure(), self.floor, self.goal, self.is_limit)


@dataclass(frozen=True, slots=True)
class Step:
    """A decode step."""

    requests: int
    adapters: int
    is_drawn: bool
    milliseconds: float


class Goals:
    """Goals 1 to 9, 11 to 14 and 19 to 21; 10 needs a server (`benchmarks.ratios`, `many`).

    Each measures what it needs; shared measurements are made once.
    """

    def __init__(self, sizes: Sizes, device: torch.device, files: AdapterFiles) -> None:
        """Measure on `device` with adapters of `files`, after `prepare`."""
        self.sizes = sizes
        self._device = device
        self._files = files
        self._batch = sizes.batch
        self.rate = on.bandwidth(device)
        """Bytes per second that a copy reads and writes."""
        self._steps: dict[tuple[object, ...], Step] = {}
        self.kernels: dict[str, list[KernelTime]] = {}
        """Kernels of decode steps, by kind of step; set when goal 11 is measured."""
        self.num_dora: int | None = None
        """Distinct adapters of goal 20: as many as can be loaded in its time, and fit."""
        self.load_parts: dict[str, float] = {}
        """Milliseconds of the parts of a load; set when goal 14 is measured."""

    def prepare(self) -> None:
        """Create the engine, which takes a while."""
        sizes = self.sizes
        self._served = Served(
            sizes.shape, self._device, self._files, batch=sizes.large_batch, context=sizes.context,
            steps=sizes.steps, most_rank=sizes.large_rank,
        )  # fmt: skip

    @property
    def steps(self) -> list[Step]:
        """Decode steps, in the order in which they were measured."""
        return list(self._steps.values())

    def close(self) -> None:
        """Free the engine's device memory."""
        self._served.close()

    def all(self) -> list[Goal]:
        """Return all goals: the most informative and the fastest first."""
        batch, large, rank = self._batch, self.sizes.large_batch, self.sizes.large_rank
        mixed = f"ranks 8 to 64 ÷ all {self._mean_rank}"
        scattered = f"{batch} of {self._num_resident} resident adapters of rank {_RANK}"
        drawn, dora = f"{batch} requests, draws ÷ greedy", f"{batch} requests, DoRA ÷ LoRA of r16"
        found = [
            Goal(12, f"base, {batch}: step ÷ floor", self._base, 1, 1.35, is_limit=True),
            self._ratio(3, batch, 1, 0.96),
            self._ratio(4, batch, min(8, batch), 0.92),
            self._ratio(5, batch, batch, 0.82),
            Goal(
                7, f"increment of {batch} distinct r16 ÷ its bytes", self._increment, 1, 1.7, True
            ),
            Goal(1, "base with adapters resident, 1 ÷ step", self._idle, 1, 0.995),
            self._ratio(2, 1, 1, 0.96),
            Goal(9, f"prompt of {self.sizes.prompt} tokens, r16", self._prefill, 0.99, 0.95),
            Goal(19, drawn, self._draws, 1, 0.95),
            Goal(11, "kernels more in a decode step", self._launches, 0, 64, is_limit=True),
            self._ratio(6, large, large, LARGE[rank], rank),
            Goal(21, scattered, self._scattered, self._ratio_floor(batch, batch * _RANK), 0.8),
            Goal(13, "miss, on the host, r16, ms", self._misses, 1.5, 5, is_limit=True),
            Goal(14, "miss, on disk, r16, ms", partial(self._misses, True), 19, 40, is_limit=True),
            Goal(8, mixed, self._ranks, 1, 1.1, is_limit=True),
            Goal(20, dora, self._dora, 1, 0.9),
        ]
        left_out = []
        if self._device.type != "cuda":  # nothing is launched
            left_out.append(11)
        if self._num_resident * _RANK > large * rank:  # they do not fit the device
            left_out.append(21)
        return [goal for goal in found if goal.number not in left_out]

    def tokens_per_second(self, adapters: int) -> float:
        """Return the tokens per second of steps for so many adapters of rank 16; 0: the base."""
        return self._batch / self._step(self._batch, self._adapters(adapters))

    def _ratio(
        self, number: int, batch: int, adapters: int, goal: float, rank: int = _RANK
    ) -> Goal:
        what = f"{batch} requests, {adapters} adapters of rank {rank}"
        floor = self._ratio_floor(batch, adapters * rank)

        def measure() -> float:
            base = self._step(batch, [])
            return base / self._step(batch, self._files.sources(rank, adapters))

        return Goal(number, what, measure, floor, goal)

    def _ratio_floor(self, batch: int, ranks: int) -> float:
        return self._floor(batch, 0) / self._floor(batch, ranks)

    @property
    def _num_resident(self) -> int:
        """Adapters of goal 21 on the device: twice as many as a step has."""
        return 2 * self._batch

    def _scattered(self) -> float:
        resident = self._adapters(self._num_resident)
        self._served.load(resident)
        step = self._step(self._batch, resident[::2])
        return self._step(self._batch, []) / step

    def _base(self) -> float:
        return self._step(self._batch, []) / self._floor(self._batch, 0)

    def _idle(self) -> float:
        before = self._step(self._batch, [])
        self._served.load(self._adapters(self._batch))
        return before / self._served.step(self._batch, [])

    def _increment(self) -> float:
        more = self._step(self._batch, self._adapters(self._batch)) - self._step(self._batch, [])
        return more / (self._bytes(_RANK * self._batch) / self.rate)

    def _prefill(self) -> float:
        (adapter,) = self._adapters(1)
        return self._served.prefill(self.sizes.prompt, None) / self._served.prefill(
            self.sizes.prompt, adapter
        )

    def _draws(self) -> float:
        return self._step(self._batch, []) / self._step(self._batch, [], _DRAWN)

    def _launches(self) -> float:
        for what, number in (("base", 0), (f"{self._batch} distinct r16", self._batch)):
            self.kernels[what] = self._served.kernels(self._batch, self._adapters(number))
        base, other = (
            sum(kernel.launches for kernel in kernels if not kernel.is_copy)
            for kernels in self.kernels.values()
        )
        return other - base

    def _misses(self, on_disk: bool = False) -> float:
        found = []
        sources = self._adapters(_MISSES) if on_disk else self._served.displaced(_RANK, _MISSES)
        for source in sources:
            first = self._served.missed(source, on_disk=on_disk)
            found.append(first - self._served.missed(source, on_disk=False))
        if on_disk:
            self.load_parts = load_parts(sources[0], self._device)
        return 1e3 * min(found)

    @property
    def _mean_rank(self) -> int:
        each = -(-self._batch // len(_MIXED))
        ranks = [rank for rank in _MIXED for _ in range(each)][: self._batch]
        return sum(ranks) // len(ranks)

    def _ranks(self) -> float:
        each = -(-self._batch // len(_MIXED))
        mixed = [source for rank in _MIXED for source in self._files.sources(rank, each)]
        uniform = self._files.sources(self._mean_rank, self._batch)
        return self._step(self._batch, mixed[: self._batch]) / self._step(self._batch, uniform)

    def _dora(self) -> float:
        (first,) = self._files.sources(_RANK, 1, use_dora=True)
        # Measuring rows of the base for each adapter would take as long as a whole goal.
        affordable = max(1, int(2 * _DORA_SECONDS / self._served.load([first])))
        self.num_dora = min(self._batch, affordable, self._served.most_like(first))
        dora = self._files.sources(_RANK, self.num_dora, use_dora=True)
        return self._step(self._batch, self._adapters(self.num_dora)) / self._step(
            self._batch, dora
        )

    def _adapters(self, number: int) -> list[AdapterSource]:
        return self._files.sources(_RANK, number) if number else []

    def _step(
        self, batch: int, adapters: Sequence[AdapterSource], sampling: Sampling = GREEDY
    ) -> float:
        """Return the seconds of such a decode step; measured once."""
        key = batch, tuple(adapter.digest for adapter in adapters), sampling.temperature
        if key not in self._steps:
            taken = self._served.step(batch, adapters, sampling)
            self._steps[key] = Step(batch, len(adapters), sampling.temperature > 0, 1e3 * taken)
        return self._steps[key].milliseconds / 1e3

    def _floor(self, batch: int, ranks: int) -> float:
        """Return the seconds to read the bytes of a decode step with `ranks` rank rows."""
        shape, item = self.sizes.shape, dtype_of(self._device).itemsize
        layer = sum(inputs * outputs for inputs, outputs in shape.features().values())
        weights = (shape.layers * layer + shape.vocab * shape.hidden) * item
        cache = batch * self.sizes.context * shape.kv_bytes // 4 * item
        return (weights + cache + self._bytes(ranks)) / self.rate

    def _bytes(self, ranks: int) -> int:
        shape = self.sizes.shape
        per_rank = shape.layers * sum(sum(sizes) for sizes in shape.features().values())
        return per_rank * ranks * dtype_of(self._device).itemsize
