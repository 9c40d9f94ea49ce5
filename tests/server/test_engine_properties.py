"""Whatever arrives, is cancelled or ends, in any order: nothing leaks, nothing is mixed up."""

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loramux_adapters.embedding import Pooling
from loramux_adapters.head import Task
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Drop, Pause, Resume, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.fake import (
    BLOCK_SIZE,
    VOCAB,
    HeldExecutor,
    ManualClock,
    completion,
    fake_engine,
    fake_source,
)

RANKS = dict(enumerate((8, 1, 16, 24, 3, 8, 32, 16, 12, 4, 8), start=1))
VIRTUAL = {5: (6, False), 6: (17, False), 7: (9, True), 1: (2, True)}
"""Adapter -> virtual tokens that it brings, and whether their keys and values."""
NUM_BLOCKS = 12
BROKEN = 8
TASKS = {9: Task.SEQUENCE, 10: Task.TOKENS, 11: Task.SPANS}
"""Adapters that classify."""
INVOCATIONS = {2: (7,), 3: (5, 9)}
"""Adapters that are active only from their invocation tokens on, which BEGINNING has twice."""


@dataclasses.dataclass
class Asked:
    """A request that was submitted, and what came of it."""

    prompt: list[int]
    adapter: int
    sampling: Sampling
    deadline: float
    pooling: Pooling | None = None
    output: list[int] = dataclasses.field(default_factory=list)
    reported: list[int] | None = None
    """The likeliest tokens in the places of its prompt, where they were told."""
    outcome: str = ""


def active_from(asked: Asked) -> int:
    """Return the position of the first token that the adapter sees."""
    wanted = list(INVOCATIONS.get(asked.adapter, ()))
    places = [i for i in range(len(asked.prompt)) if asked.prompt[i:][: len(wanted)] == wanted]
    return (places[-1] if places else NUM_BLOCKS * BLOCK_SIZE) if wanted else 0


def read(asked: Asked) -> list[int]:
    """Return what the fake model makes of a text that is read, or of each of its tokens."""
    size = len(asked.prompt)
    if asked.pooling:
        first = size if asked.pooling is Pooling.LAST else 1
        states = [
            completion(asked.prompt[:end], asked.adapter, 1, eos=False)[0]
            for end in range(first, size + 1)
        ]
        return [int(np.float32(sum(states)) / np.float32(len(states)))]
    ends = {Task.SEQUENCE: [size], **dict.fromkeys((Task.TOKENS, Task.SPANS), range(1, size + 1))}
    return [
        completion(asked.prompt[:end], asked.adapter, 1, eos=False)[0]
        for end in (ends[TASKS[asked.adapter]] if asked.adapter in TASKS else [])
    ]


def written(asked: Asked) -> list[int]:
    """Return what the fake model writes."""
    return completion(
        asked.prompt, asked.adapter, asked.sampling.max_tokens,
        eos=not asked.sampling.ignore_eos, active_from=active_from(asked),
        num_virtual=VIRTUAL.get(asked.adapter, (0, False))[0], sampling=asked.sampling,
    )  # fmt: skip


def reported(asked: Asked) -> list[int]:
    """Return what is the likeliest in each place of the prompt but the first."""
    return [
        completion(
            asked.prompt[:end], asked.adapter, 1, eos=False, active_from=active_from(asked),
            num_virtual=VIRTUAL.get(asked.adapter, (0, False))[0],
        )[0]
        for end in range(1, len(asked.prompt))
    ]  # fmt: skip


SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 3.0},
    {"temperature": 4.0, "top_k": 5},
    {"temperature": 5.0, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 3.0, "presence_penalty": 2.0},
    {"temperature": 3.0, "num_logprobs": 2},
    {"temperature": 0.0, "num_prompt_logprobs": 1},
    {"temperature": 3.0, "num_prompt_logprobs": 1, "max_tokens": 0},
]
"""How tokens are chosen: the device can in the first ones."""

BEGINNING = [5, 9, 2, 7, 7, 3, 11, 4, 5, 9, 2, 8, 30, 31, 6, 6, 2, 3]
TOKENS = st.integers(2, VOCAB - 1)
PROMPTS = st.one_of(
    st.lists(TOKENS, min_size=1, max_size=30),
    st.builds(  # many begin alike, and share blocks
        lambda count, rest: BEGINNING[:count] + rest,
        st.integers(4, len(BEGINNING)), st.lists(TOKENS, min_size=1, max_size=6),
    ),
)  # fmt: skip


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine at random and holds it against what each request alone would give."""

    @initialize(
        rows=st.sampled_from([32, 40, 64]),
        bypassed=st.integers(0, 5),
        runs_ahead=st.booleans(),
        eviction=st.sampled_from(["lru", "cost"]),
        share=st.sampled_from([0.25, 0.5, 1.0]),
        drafts=st.sampled_from([0, 5]),
        states=st.sampled_from([0, 0, 1, 3, 6, 40]),
    )
    def build(
        self,
        rows: int,
        bypassed: int,
        runs_ahead: bool,
        eviction: str,
        share: float,
        drafts: int,
        states: int,
    ) -> None:
        self.has_states = states > 0
        self.executor = HeldExecutor()
        self.clock = ManualClock()
        self.engine, self.scheduler, self.cache, model = fake_engine(
            num_blocks=NUM_BLOCKS, rows=rows, host_bytes=6400, max_bypassed=bypassed,
            executor=self.executor, runs_ahead=runs_ahead, eviction=eviction,
            max_tenant_share=share, clock=self.clock,
            speculative_tokens=0 if states else drafts, num_states=states,
        )  # fmt: skip
        model.broken = {BROKEN}
        self.asked: list[Asked] = []
        self.paused: set[int] = set()

    @rule(
        prompt=PROMPTS,
        adapter=st.integers(0, len(RANKS)),
        max_tokens=st.integers(1, 12),
        ignore_eos=st.booleans(),
        timeout=st.none() | st.integers(1, 20),
        tenant=st.sampled_from(["", "a", "b"]),
        seed=st.integers(0, 3),
        pooling=st.sampled_from([*[None] * 6, Pooling.LAST, Pooling.MEAN]),
        how=st.sampled_from(SAMPLINGS[:1] * 4 + SAMPLINGS[1:4] * 3 + SAMPLINGS[4:]),
        wrong=st.none() | st.integers(0, 12),
        goes_on=st.sampled_from([*[False] * 4, True]),
        priority=st.sampled_from([0, 0, 0, -5, 3]),
    )
    def submit(
        self,
        prompt: list[int],
        adapter: int,
        max_tokens: int,
        ignore_eos: bool,
        timeout: float | None,
        tenant: str,
        seed: int,
        pooling: Pooling | None,
        how: dict[str, Any],
        wrong: int | None,
        goes_on: bool,
        priority: int,
    ) -> None:
        num_virtual, has_cache = VIRTUAL.get(adapter, (0, False))
        if has_cache and self.has_states:  # recurrent layers know nothing of keys and values
            adapter, num_virtual, has_cache = 0, 0, False
        max_tokens = min(max_tokens, NUM_BLOCKS * BLOCK_SIZE - len(prompt) - num_virtual)
        invocation = INVOCATIONS.get(adapter, ())
        source = None
        if adapter:
            source = fake_source(
                adapter, RANKS[adapter], invocation, num_virtual=num_virtual, has_cache=has_cache,
                task=TASKS.get(adapter),
            )  # fmt: skip
        if source:
            source = msgspec.structs.replace(source, tenant="ab"[adapter % 2])
        if adapter in {*TASKS, *VIRTUAL, *INVOCATIONS}:
            pooling = None
        if pooling or adapter in TASKS:
            how = SAMPLINGS[0]
        how = {"max_tokens": max_tokens, "seed": seed, "ignore_eos": ignore_eos, **how}
        sampling = Sampling(**how)
        weight = 1 + len(tenant)
        deadline = self.clock() + (math.inf if timeout is None else timeout)
        asked = Asked(prompt, adapter, sampling, deadline, pooling)
        prediction: list[int] = []
        if wrong is not None and adapter not in TASKS and not pooling and sampling.max_tokens:
            prediction = written(asked)
            prediction[wrong : wrong + 1] = [3]
        ask = Ask(
            prompt, source, sampling, tenant, pooling, prediction,
            num_generated=len(prompt) - 1 if goes_on and not invocation else 0,
        )  # fmt: skip
        self.engine.receive([Submit(len(self.asked), ask, timeout, weight, priority)])
        self.asked.append(asked)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.integers(0, len(self.asked) - 1))
        self.engine.receive([Cancel(request_id)])
        if not self.asked[request_id].outcome:
            self.asked[request_id].outcome = "cancelled"

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), kind=st.sampled_from([Pause, Resume]))
    def pause_or_resume(self, data: st.DataObject, kind: type[Pause | Resume]) -> None:
        request_id = data.draw(st.integers(0, len(self.asked) - 1))
        self.engine.receive([kind(request_id)])
        if kind is Pause and not self.asked[request_id].outcome:
            self.paused.add(request_id)
        else:
            self.paused.discard(request_id)

    @rule(adapter=st.integers(1, len(RANKS)))
    def drop(self, adapter: int) -> None:
        self.engine.receive([Drop(fake_source(adapter, 8).digest)])

    @precondition(lambda self: len(self.executor) > 0)
    @rule(data=st.data())
    def finish_a_load(self, data: st.DataObject) -> None:
        self.executor.finish(data.draw(st.integers(0, len(self.executor) - 1)))

    @rule(seconds=st.integers(1, 9))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(count=st.integers(1, 5))
    def step(self, count: int) -> None:
        for _ in range(count):
            report = self.engine.step()
            for prompt in report.prompts:
                asked = self.asked[prompt.request_id]
                assert not asked.outcome, "a prompt after the end"
                assert asked.reported is None, "a prompt twice"
                assert not asked.output, "a prompt after a token"
                logprobs_TL = np.frombuffer(prompt.numbers, np.float64).reshape(-1, 4)
                asked.reported = logprobs_TL[:, 3].astype(int).tolist()
                if prompt.finish:
                    asked.outcome = "finished"
            for token in report.tokens:
                asked = self.asked[token.request_id]
                assert not asked.outcome, "a token after the end"
                assert token.request_id not in self.paused, "a token of one that is paused"
                assert asked.deadline > self.clock(), "a token after the deadline"
                asked.output.append(token.token)
                if token.finish:
                    asked.outcome = "finished"
            for scores in report.scores:
                asked = self.asked[scores.request_id]
                assert not asked.outcome, "scores after the end"
                assert asked.deadline > self.clock(), "scores after the deadline"
                asked.output = np.frombuffer(scores.numbers, np.float32).astype(int).tolist()
                asked.outcome = "finished"
            for failure in report.failures:
                asked = self.asked[failure.request_id]
                if "cannot be finished" in failure.message:  # steps have taken too long of late
                    assert asked.deadline < math.inf
                    assert not asked.output
                elif failure.reason == "DEADLINE_EXCEEDED":
                    assert asked.deadline <= self.clock()
                else:
                    assert (asked.adapter, failure.reason) == (BROKEN, "ADAPTER_DAMAGED")
                asked.outcome = "failed"

    @invariant()
    def nothing_leaks(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()
            leased = sum(bool(request.adapter) for request in self.scheduler.running)
            assert self.cache.num_leases == leased
            waiting = sum(bool(request.adapter) for request in self.scheduler.waiting)
            assert self.cache.num_waiting == waiting

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.receive([Resume(request_id) for request_id in self.paused])
        self.paused = set()
        for _ in range(3000):
            if all(asked.outcome for asked in self.asked):
                break
            while len(self.executor):
                self.executor.finish()
            self.step(1)
        assert all(asked.outcome for asked in self.asked), "a request never ended"
        for asked in self.asked:
            alone = read(asked) or written(asked)
            if asked.reported is not None:
                assert asked.reported == reported(asked)
            if asked.outcome == "finished":
                assert asked.output == alone
                assert (asked.reported is None) == (asked.sampling.num_prompt_logprobs is None)
            else:
                assert asked.output == alone[: len(asked.output)]
        assert self.scheduler.num_used_blocks == 0
        self.scheduler._contexts.check([])
        assert self.cache.num_leases == 0
        assert self.cache.num_waiting == 0


EngineMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestEngine = EngineMachine.TestCase
