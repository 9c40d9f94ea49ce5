"""What the engine should reach on a GPU, each goal with its floor and what was measured.

Ratios are base ÷ with adapters for the same steps: 1 would be adapters for nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu.served import KernelTime, Served
from loramux_server.engine.messages import AdapterSource

_MIXED = (8, 16, 32, 64)
_MISSES = 5
_LARGE = {64: 0.48, 16: 0.75}
"""Rank -> goal 6."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, what it could be at best and what it should be."""

    number: int
    what: str
    measured: float
    floor: float | None
    goal: float
    is_limit: bool = False
    """Whether it should be at most the goal, and not at least."""


class Goals:
    """Measures goals 1 to 9 and 11 to 14; 10 is about a server (`benchmarks.ratios`, `many`)."""

    def __init__(
        self,
        served: Served,
        rate: float,
        batch: int,
        large_batch: int,
        large_ranks: list[int],
        prompt: int,
    ) -> None:
        """Measure with `served`, on a device that copies at `rate` bytes per second.

        Most goals with `batch` requests, goal 6 with `large_batch` and adapters of `large_ranks`,
        goal 9 with a prompt of `prompt` tokens.
        """
        self._served = served
        self._rate = rate
        self._batch = batch
        self._large = large_batch
        self._large_ranks = sorted(large_ranks, reverse=True)
        self._prompt = prompt
        self.kernels: dict[str, list[KernelTime]] = {}
        """What decode steps consist of, by what they are of; known when all is measured."""

    def measure(self) -> Iterator[Goal]:
        """Yield each goal as it has been measured."""
        served, batch, large = self._served, self._batch, self._large
        wide = served.step(large, None, 0)
        # These fill all rows. Where others have been, what is left may lie in pieces too small.
        for large_rank in self._large_ranks:
            sources = served.sources(large_rank, large)
            yield self._ratio(6, large, sources, wide, _LARGE[large_rank])
        base = served.step(batch, None, 0)
        yield Goal(12, f"base, {batch}: step ÷ floor", base / self._floor(batch, []), 1, 1.35, True)
        for number, adapters, goal in ((3, 1, 0.96), (4, min(8, batch), 0.92), (5, batch, 0.82)):
            sources = served.sources(16, adapters)
            yield self._ratio(number, batch, sources, base, goal)
        sources = served.sources(16, batch)
        after = served.step(batch, None, 0)
        yield Goal(1, "base with adapters resident, 1 ÷ step", base / after, 1, 0.995)
        increment = served.steps(batch, sources) - after
        yield Goal(
            7, f"increment of {batch} distinct r16 ÷ its bytes",
            increment / (self._bytes(sources) / self._rate), 1, 1.7, True,
        )  # fmt: skip
        mixed = [
            source for rank in _MIXED for source in served.sources(rank, -(-batch // len(_MIXED)))
        ][:batch]
        mean = sum(source.rank for source in mixed) // len(mixed)
        uniform = served.steps(batch, served.sources(mean, batch))
        yield Goal(
            8, f"ranks 8 to 64 ÷ all {mean}", served.steps(batch, mixed) / uniform, 1, 1.1, True
        )
        single = served.step(1, None, 0)
        yield self._ratio(2, 1, served.sources(16, 1), single, 0.96)
        if torch.cuda.is_available():
            for name, rank in (("base", None), (f"{batch} distinct r16", 16)):
                self.kernels[name] = served.kernels(batch, rank, batch)
            base_count, count = (
                sum(kernel.launches for kernel in kernels if not kernel.is_copy)
                for kernels in self.kernels.values()
            )
            yield Goal(11, "kernels more in a decode step", count - base_count, 0, 64, True)
        prefill = served.prefill(self._prompt, None) / served.prefill(self._prompt, 16)
        yield Goal(9, f"prompt of {self._prompt} tokens, r16", prefill, 0.99, 0.95)
        # One at a time they find room. Those of the goals above are left on the host only.
        most = self._large_ranks[0]
        served.visit(served.sources(most, large) if most > mean else served.sources(mean, batch))
        for number, on_disk, floor, goal in ((13, False, 1.5, 5), (14, True, 19, 40)):
            where = "on disk" if on_disk else "on the host"
            taken = [self._miss(source, on_disk=on_disk) for source in sources[:_MISSES]]
            yield Goal(number, f"miss, {where}, r16, ms", 1e3 * min(taken), floor, goal, True)

    def _ratio(
        self, number: int, batch: int, sources: list[AdapterSource], base: float, goal: float
    ) -> Goal:
        what = f"{batch} requests, {len(sources)} adapters of rank {sources[0].rank}"
        floor = self._floor(batch, []) / self._floor(batch, sources)
        return Goal(number, what, base / self._served.steps(batch, sources), floor, goal)

    def _miss(self, source: AdapterSource, *, on_disk: bool) -> float:
        first = self._served.missed(source, on_disk=on_disk)
        return first - self._served.missed(source, on_disk=False)

    def _floor(self, batch: int, sources: list[AdapterSource]) -> float:
        """Return the seconds that the bytes of a decode step take."""
        shape, item = self._served.shape, self._served.item_bytes
        layer = sum(inputs * outputs for inputs, outputs in shape.features().values())
        weights = (shape.layers * layer + shape.vocab * shape.hidden) * item
        cache = batch * self._served.context * shape.kv_bytes // 4 * item
        return (weights + cache + self._bytes(sources)) / self._rate

    def _bytes(self, sources: list[AdapterSource]) -> int:
        shape = self._served.shape
        per_rank = shape.layers * sum(sum(sizes) for sizes in shape.features().values())
        return per_rank * sum(source.rank for source in sources) * self._served.item_bytes
