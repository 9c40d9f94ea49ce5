"""Drafts: they decide when a token comes, never which."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from loramux_server.engine.messages import Cancel, Drop, Sampling, Submit
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import sample
from loramux_server.engine.speculation import Odds
from loramux_server.engine.token_counts import counts_of
from tests.server.test_running_ahead import CHOICES
from tests.support.fake import (
    EOS,
    VOCAB,
    FakeModel,
    ManualClock,
    SlowModel,
    completion,
    fake_engine,
    fake_source,
)

A, B = fake_source(1, 8), fake_source(2, 16)
PROMPT = [5, 6, 7, 8, 9]


@dataclass
class Asking:
    """An engine that is asked one thing after the other, and what it did."""

    most: int = 8
    num_blocks: int = 60
    model: FakeModel | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    max_running: int = 8
    runs_ahead: bool = False

    def __post_init__(self) -> None:
        self.engine, self.scheduler, self.cache, self.fake = fake_engine(
            num_blocks=self.num_blocks, rows=64, speculative_tokens=self.most, model=self.model,
            clock=self.clock, max_running=self.max_running, max_batch_tokens=64,
            runs_ahead=self.runs_ahead,
        )  # fmt: skip
        self._next = 0
        self.drafted = self.accepted = self.num_steps = 0
        self.found: dict[int, list[Any]] = {}

    def submit(self, prompt: list[int] = PROMPT, adapter: Any = A, **sampling: Any) -> int:
        chosen = Sampling(**{"max_tokens": 12, "seed": 0, "temperature": 0.0} | sampling)
        tenant = sampling.pop("tenant", "")
        self.engine.receive([Submit(self._next, prompt, adapter, chosen, tenant)])
        self.found[self._next] = []
        self._next += 1
        return self._next - 1

    def run(self) -> None:
        executor = self.engine._residents._executor
        for _ in range(400):
            while len(executor):  # type: ignore[arg-type]
                executor.finish()  # type: ignore[attr-defined]
            report = self.engine.step()
            self.engine.check()
            assert not report.failures
            for token in report.tokens:
                self.found[token.request_id].append((token.token, token.logprobs, token.finish))
            if report.batch:
                self.num_steps += 1
                self.drafted += report.batch.drafted
                self.accepted += report.batch.accepted
            if not (self.scheduler.running or self.scheduler.waiting or len(executor)):  # type: ignore[arg-type]
                break

    def ask(self, *args: Any, **kwargs: Any) -> list[int]:
        number = self.submit(*args, **kwargs)
        self.run()
        return [token for token, *_ in self.found[number]]
