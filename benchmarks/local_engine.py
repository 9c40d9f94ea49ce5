"""The engine in this process, for measurements below gRPC: fill it, then time its steps."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.fixture import Shape, make_base
from loramux_adapters import read_package
from loramux_adapters.package import digest_of, pack
from loramux_server.engine.build import build_engine
from loramux_server.engine.config import EngineConfig
from loramux_server.engine.messages import (
    AdapterSource,
    Cancel,
    Drop,
    Report,
    Sampling,
    Submit,
)
from loramux_server.engine.residents import loader_threads
from loramux_server.kernels.resting import Quantization
from loramux_server.lora.packed import format_of
from loramux_server.models.base_model import BaseModel, load_base_model
from loramux_server.store.check import num_bytes


class LocalEngine:
    """An engine of a fixture's base model; one batch at a time."""

    def __init__(self, base: Path | BaseModel, config: EngineConfig) -> None:
        """Serve `base`, or the model in that folder; `config.model` is not looked at."""
        torch.set_num_threads(config.threads or torch.get_num_threads())
        if isinstance(base, Path):
            base = load_base_model(
                str(base),
                dtype=config.dtype,
                device=config.device,
                kernels=config.kernels,
                quantization=Quantization(config.quantization),
            )
        self.model = base
        self._executor = loader_threads()
        self.engine, self.info = build_engine(self.model, config, self._executor, lambda: None)
        self._rng = random.Random(0)
        self._requests: list[int] = []
        self._next_id = 0

    def fill(self, count: int, adapters: Sequence[AdapterSource], context: int) -> None:
        """Start `count` requests, adapters in turn, and run their prompts of `context` tokens."""
        sampling = Sampling(max_tokens=10_000, seed=0, temperature=0.0, ignore_eos=True)
        for index in range(count):
            prompt = [self._rng.randrange(3, self.info.vocab_size) for _ in range(context)]
            adapter = adapters[index % len(adapters)] if adapters else None
            self.engine.receive([Submit(self._next_id, prompt, adapter, sampling)])
            self._requests.append(self._next_id)
            self._next_id += 1
        answered: set[int] = set()
        while len(answered) < count:
            report = self.step()
            answered |= {token.request_id for token in report.tokens}
            if report.failures:
                raise SystemExit(f"a request failed: {report.failures[0]}")

    def step(self) -> Report:
        """Run one step, after any load that it has to wait for."""
        while not self.engine.can_step:
            time.sleep(0.001)
        return self.engine.step()

    def time_steps(self, count: int) -> list[float]:
        """Return the seconds of each of `count` steps."""
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def first_token_seconds(self, prompt: list[int], adapter: AdapterSource | None) -> float:
        """Return the seconds from a request for one token to its answer."""
        sampling = Sampling(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)
        begin = time.perf_counter()
        self.engine.receive([Submit(self._next_id, prompt, adapter, sampling)])
        self._next_id += 1
        while not self.step().tokens:
            pass
        return time.perf_counter() - begin

    def forget(self, adapter: AdapterSource) -> None:
        """Let go of `adapter`'s weights in memory."""
        self.engine.receive([Drop(adapter.digest)])
        self.engine.step()

    def close(self) -> None:
        """End the threads on which adapters are loaded."""
        self._executor.shutdown()

    def clear(self) -> None:
        """End all requests."""
        self.engine.receive([Cancel(request) for request in self._requests])
        self.engine.step()
        self._requests.clear()


def fixture_base(folder: Path, shape: Shape) -> Path:
    """Return a base model of `shape` in `folder`, which may hold it from an earlier run."""
    path = folder / "base"
    return path if path.exists() else make_base(path, shape)


def packaged(folder: Path) -> list[AdapterSource]:
    """Pack each PEFT folder in `folder` and return what the engine needs to load it."""
    sources = []
    for peft in sorted(path for path in folder.iterdir() if path.is_dir()):
        target = peft.with_suffix(".package")
        with target.open("w+b") as file:
            pack(peft, file)
            file.seek(0)
            package = read_package(file, target.stat().st_size)
            digest = digest_of(file)
        sources.append(
            AdapterSource(
                digest,
                str(target),
                package.rank,
                num_bytes(package),
                format_of(package).item_bytes,
            )
        )
    return sources
