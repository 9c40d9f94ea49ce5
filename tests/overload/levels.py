"""Some times of what can be served: how much of it is, and how soon the rest is told so."""

import contextlib
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import psutil

from tests.chaos import percentile
from tests.overload.clocks import log_size, own_refusals, repeating, sleeper
from tests.overload.generator import Answer, Generator
from tests.support.server import RunningServer

T = TypeVar("T")

DEADLINES = 4.0
"""Deadline of a request, in times of what one takes where the server is busy and none waits."""
PATIENCE = 5.0
"""Seconds after its deadline until which a request has to end."""
DEADLINE = "DEADLINE_EXCEEDED"
"""How those end that were let in and not finished in time."""
PROBES = 20.0
"""Requests a second, a quarter of all at most, from a process that does nothing else.

What reads streams all the time sees late that a request was refused.
"""

SAMPLE_SECONDS = 0.2
"""Between two looks at the memory."""


@dataclass(frozen=True)
class Pace:
    """What a busy server does."""

    capacity: float
    """Requests a second that it finishes."""
    seconds: float
    """What one takes."""

    @property
    def deadline(self) -> float:
        """Seconds that a request gets."""
        return DEADLINES * self.seconds


@dataclass(frozen=True)
class Trial:
    """What came of one rate once."""

    capacity: float
    """Requests a second that the server finishes: before this and after it, on average."""
    deadline: float
    """Seconds that a request got."""
    begin: float
    seconds: float
    answers: list[Answer]
    probes: list[Answer]
    """Those of the answers by which refusals are measured."""
    own_refusals: list[float]
    """Seconds of each refusal by the server's log."""
    late: list[float]
    """By how many seconds a process that sleeps woke up late meanwhile."""
    memory: float
    """The most MiB that both processes had."""

    @property
    def served(self) -> list[Answer]:
        """Those that were finished by their deadline."""
        return [answer for answer in self.answers if not answer.reason]

    @property
    def busy_seconds(self) -> float:
        """Until the last of them was."""
        return max([self.seconds, *(answer.end - self.begin for answer in self.served)])

    @property
    def refusals(self) -> list[float]:
        """Seconds until each probe that was not let in was told so."""
        return [a.end - a.begin for a in self.probes if a.reason and a.reason != DEADLINE]

    @property
    def num_hung(self) -> int:
        return sum(a.end - a.begin > self.deadline + PATIENCE for a in self.answers)


@dataclass(frozen=True)
class Level:
    """What came of one rate, each time."""

    factor: float
    """Of what can be served."""
    trials: list[Trial]

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials)

    @property
    def capacity(self) -> float:
        return statistics.mean(trial.capacity for trial in self.trials)

    @property
    def answers(self) -> list[Answer]:
        return _all(trial.answers for trial in self.trials)

    @property
    def served(self) -> list[Answer]:
        return _all(trial.served for trial in self.trials)

    @property
    def refusals(self) -> list[float]:
        return _all(trial.refusals for trial in self.trials)

    @property
    def late(self) -> list[float]:
        return _all(trial.late for trial in self.trials)

    @property
    def memory(self) -> float:
        return max(trial.memory for trial in self.trials)

    @property
    def num_hung(self) -> int:
        return sum(trial.num_hung for trial in self.trials)

    @property
    def offered(self) -> float:
        """Requests a second."""
        return len(self.answers) / self.seconds

    @property
    def goodput(self) -> float:
        """Requests a second that were finished in time."""
        busy = sum(trial.busy_seconds for trial in self.trials)
        return len(self.served) / busy

    @property
    def share(self) -> float:
        """Goodput as a part of what can be served."""
        return self.goodput / self.capacity

    def row(self) -> dict[str, object]:
        first = [answer.first - answer.begin for answer in self.served]
        whole = [answer.end - answer.begin for answer in self.served]
        own = _all(trial.own_refusals for trial in self.trials)
        return {
            "load": f"{self.factor:g}x",
            "can be /s": round(self.capacity, 1),
            "offered /s": round(self.offered, 1),
            "goodput /s": round(self.goodput, 1),
            "part": round(self.share, 2),
            "p50 first s": round(percentile(first, 0.5), 3),
            "p99 first s": round(percentile(first, 0.99), 3),
            "p50 whole s": round(percentile(whole, 0.5), 3),
            "p99 whole s": round(percentile(whole, 0.99), 3),
            "refusals timed": len(self.refusals),
            "p50 refusal s": round(percentile(self.refusals, 0.5), 4),
            "p99 refusal s": round(percentile(self.refusals, 0.99), 4),
            "p99 by the server s": round(percentile(own, 0.99), 4),
            "p99 of a sleeper s": round(percentile(self.late, 0.99), 4),
            "worst of a sleeper s": round(max(self.late, default=0.0), 4),
            "p99 sent late s": round(percentile([a.begin - a.due for a in self.answers], 0.99), 4),
            "MiB": round(self.memory),
            "failed": dict(Counter(a.reason for a in self.answers if a.reason).most_common()),
        }


def _all(parts: Iterable[list[T]]) -> list[T]:
    return list(chain.from_iterable(parts))


def find_pace(generator: Generator, count: int, seconds: float) -> Pace:
    """Find out what can be served of which `count` run; on a shared machine that changes."""
    answers = generator.busy(count, seconds).result()
    assert {answer.reason for answer in answers} == {""}
    taken = max(a.end for a in answers) - min(a.begin for a in answers)
    return Pace(len(answers) / taken, statistics.median(a.end - a.begin for a in answers))


def offer_each(
    server: RunningServer, generator: Generator, factors: Sequence[float], *, count: int,
    seconds: float, rounds: int,
) -> list[Level]:  # fmt: skip
    """Let requests come at random moments, at each rate by turns, and wait for all.

    Args:
        server: Is asked.
        generator: Asks; it needs two processes.
        factors: Times of what can be served, which is found out before and after each.
        count: Requests that run at once.
        seconds: How long they come, each time.
        rounds: How often.
    """
    levels = [Level(factor, []) for factor in factors]
    pace = find_pace(generator, count, seconds / 2)
    for _ in range(rounds):
        for level in levels:
            before = pace
            trial = _offer(server, generator, level.factor * pace.capacity, pace.deadline, seconds)
            pace = find_pace(generator, count, seconds / 2)
            capacity = (before.capacity + pace.capacity) / 2
            level.trials.append(dataclasses.replace(trial, capacity=capacity))
    return levels


def _offer(
    server: RunningServer, generator: Generator, rate: float, deadline: float, seconds: float
) -> Trial:
    probes = min(PROBES, rate / 4)
    begin = log_size(server)
    with sampled_memory(server) as memory, sleeper() as late:
        calls = [
            generator.offer(each, seconds, deadline, seed)
            for seed, each in enumerate((rate - probes, probes))
        ]
        answers, probed = (call.result() for call in calls)
    return Trial(
        0.0, deadline, min(answer.due for answer in answers), seconds, answers + probed, probed,
        own_refusals(server, begin), late, max(memory),
    )  # fmt: skip


@contextlib.contextmanager
def sampled_memory(server: RunningServer) -> Iterator[list[float]]:
    """Yield what both processes have again and again."""
    samples = [memory_of(server)]

    def sample() -> None:
        time.sleep(SAMPLE_SECONDS)
        samples.append(memory_of(server))

    with repeating(sample):
        yield samples


def memory_of(server: RunningServer) -> float:
    """Return the MiB that both processes of `server` have."""
    pids = (server.pid, server.engine_pid)
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / (1 << 20)
