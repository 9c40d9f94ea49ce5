"""The engine in this process, for measurements below gRPC: fill it, then time its steps."""

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import torch

from benchmarks.fixture import Shape, make_base
from loramux_adapters import read_package
from loramux_adapters.embedding import Pooling
from loramux_adapters.packing import pack
from loramux_server.engine.build import build_engine
from loramux_server.engine.residents import loader_threads
from loramux_server.hashes import Digest, Seal
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.lora.edits import num_edit_bytes
from loramux_server.lora.row_allocator import RowSize
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.store.check import num_bytes
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import Cancel, Drop, Report, Submit
from loramux_server.wire.sampling import Sampling
from loramux_server.wire.weight_format import format_of

GREEDY = Sampling(max_tokens=10_000, seed=0, temperature=0.0, ignore_eos=True)
"""Sampling options of requests that run until they are cancelled."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The results of requests that ran together."""

    texts: list[list[int]]
    seconds: float
    drafted: int
    accepted: int


class LocalEngine:
    """An engine for a fixture's base model; one batch at a time."""

    def __init__(
        self, base: Path | BaseModel, config: EngineConfig, *, speculative_tokens: int = 0
    ) -> None:
        """Serve `base`, or the model in that folder.

        `config.model` and the settings for drafts are ignored.
        """
        config = msgspec.structs.replace(config, speculative_tokens=speculative_tokens)
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
        self._executor = loader_threads(device=self.model.device)
        self.engine, self.info = build_engine(self.model, config, self._executor, lambda: None)
        self._rng = random.Random(0)
        self._requests: list[int] = []
        self._next_id = 0

    def fill(
        self,
        count: int,
        adapters: Sequence[AdapterSource],
        context: int,
        sampling: Sampling = GREEDY,
    ) -> None:
        """Start `count` requests with adapters in turn, and prefill `context` tokens each."""
        chosen = [adapters[index % len(adapters)] if adapters else None for index in range(count)]
        self._submit(context, chosen, sampling)
        running = self._run()
        if running != count:
            raise SystemExit(f"{running} requests run where {count} should: one ended, or was left")

    def answer(self, context: int, adapters: Sequence[AdapterSource | None]) -> float:
        """Return the seconds until each of `adapters` has a token after `context` tokens."""
        begin = self._submit(context, adapters, msgspec.structs.replace(GREEDY, max_tokens=1))
        try:
            self._run()
            return time.perf_counter() - begin
        finally:
            self.clear()

    def _submit(
        self, context: int, adapters: Sequence[AdapterSource | None], sampling: Sampling
    ) -> float:
        """Start a request for each of `adapters`, and return the start time."""
        messages = []
        for adapter in adapters:
            prompt = [self._rng.randrange(3, self.info.vocab_size) for _ in range(context)]
            messages.append(Submit(self._next_id, Ask(prompt, adapter, sampling)))
            self._requests.append(self._next_id)
            self._next_id += 1
        begin = time.perf_counter()
        self.engine.receive(messages)
        return begin

    def complete(self, messages: Sequence[Submit]) -> Completed:
        """Run requests to completion, and return their results."""
        found: dict[int, list[int]] = {message.request_id: [] for message in messages}
        drafted = accepted = 0
        begin = time.perf_counter()
        self.engine.receive(messages)
        left = len(found)
        while left:
            report = self.step()
            if report.failures:
                raise SystemExit(f"a request failed: {report.failures[0]}")
            for token in report.tokens:
                found[token.request_id].append(token.token)
                left -= token.finish is not None
            left -= len(report.scores)
            if report.batch:
                drafted += report.batch.drafted
                accepted += report.batch.accepted
        seconds = time.perf_counter() - begin
        return Completed(list(found.values()), seconds, drafted, accepted)

    def embed_seconds(
        self,
        texts: Sequence[Sequence[int]],
        adapters: Sequence[AdapterSource | None],
        pooling: Pooling,
    ) -> float:
        """Return the seconds until all of `texts` are embedded, each with its adapter."""
        messages = [
            Submit(self._take_id(), Ask(list(text), adapter, GREEDY, pooling=pooling))
            for text, adapter in zip(texts, adapters, strict=True)
        ]
        return self.complete(messages).seconds

    def write_seconds(
        self,
        texts: Sequence[Sequence[int]],
        adapters: Sequence[AdapterSource | None],
        count: int,
        begin: int,
    ) -> float:
        """Return the seconds to generate `count` tokens for each of `texts`, after `begin`."""
        sampling = msgspec.structs.replace(GREEDY, max_tokens=count)
        messages = [
            Submit(self._take_id(), Ask([*text, begin], adapter, sampling, num_source=len(text)))
            for text, adapter in zip(texts, adapters, strict=True)
        ]
        return self.complete(messages).seconds

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _run(self) -> int:
        """Step until each request has a token, and return the number of running requests."""
        waiting, running = set(self._requests), 0
        while waiting:
            report = self.step()
            waiting -= {token.request_id for token in report.tokens}
            running = report.stats.running
            if report.failures:
                raise SystemExit(f"a request failed: {report.failures[0]}")
        return running

    def step(self) -> Report:
        """Run one step, after waiting for pending loads."""
        while not self.engine.can_step:
            time.sleep(0.001)
        return self.engine.step()

    def time_steps(self, count: int, most_seconds: float = math.inf) -> list[float]:
        """Return the seconds of each of `count` steps, or of as many as begin in `most_seconds`."""
        seconds: list[float] = []
        while len(seconds) < count and sum(seconds) < most_seconds:
            begin = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def step_seconds(
        self, size: int, adapters: Sequence[AdapterSource], context: int, steps: int
    ) -> float:
        """Return the median seconds of a decode step of `size` requests.

        Args:
            size: Concurrent requests.
            adapters: Their adapters, cycled through; none for the base.
            context: Prompt length in tokens.
            steps: How many steps are timed.
        """
        self.fill(size, adapters, context)
        seconds = median(self.time_steps(steps))
        self.clear()
        return seconds

    def rows_of(self, adapter: AdapterSource) -> int:
        """Return the number of rank rows that `adapter` takes on the device."""
        size = RowSize(self.info.row_bytes, self.info.storage_format.row_item_bytes)
        storage_format = adapter.as_stored(self.info.storage_format)
        return size.rows_of(
            storage_format.rank, storage_format.item_bytes, storage_format.edit_bytes
        )

    def forget(self, digests: Iterable[str]) -> None:
        """Evict these adapters from memory."""
        self.engine.receive([Drop(digest) for digest in digests])
        self.engine.step()

    def close(self) -> None:
        """Stop the threads that load adapters."""
        self._executor.shutdown()

    def clear(self) -> None:
        """Cancel all requests."""
        self.engine.receive([Cancel(request) for request in self._requests])
        self.engine.step()
        self._requests.clear()


def fixture_base(folder: Path, shape: Shape) -> Path:
    """Return a base model of `shape` in `folder`, where an earlier run may have written it."""
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
        digest, seal = Digest(), Seal()
        for hashed in (digest, seal):
            hashed.update(target.read_bytes())
        sources.append(
            AdapterSource(
                digest.text(),
                str(target),
                package.rank,
                num_bytes(package),
                format_of(package).item_bytes,
                num_edit_bytes(package),
                seal=seal.text(),
            )
        )
    return sources
