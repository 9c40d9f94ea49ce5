"""More than can be served: what comes of it at one, two and five times of what can.

`make overload`, or `python -m tests.overload --help`. Requests come at random moments, whatever
became of those before them. Prints a table and writes JSON if told where; fails if a check does.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from loramux.aio import AsyncClient
from loramux.errors import LoramuxError
from tests.chaos import percentile
from tests.support.demo import DEMO
from tests.support.load import Ask
from tests.support.server import RunningServer
from tests.support.table import markdown

LEVELS = (1.0, 2.0, 5.0)
MAX_RUNNING = 16
MAX_TOKENS = 200
DEADLINES = 4.0
"""Deadline of a request, in times of what one takes where the server is busy and none waits."""
MIN_GOODPUT = 0.8
"""Of the most that any level had, at the last one."""
MAX_REFUSAL = 1.0
"""Seconds until a request is refused, for 99 of 100."""
MAX_GROWTH = 128
"""MiB that both processes may grow by."""
PATIENCE = 5.0
"""Seconds after its deadline until which a request has to end."""
DEADLINE = "DEADLINE_EXCEEDED"
"""How those end that were let in and not finished in time."""


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    begin: float
    first: float
    """When its first token came; its end where none did."""
    end: float
    reason: str = ""
    """Why it failed; empty if it did not."""


@dataclass(frozen=True)
class Level:
    """What came of one rate."""

    factor: float
    """Of what can be served."""
    capacity: float
    """What can be: requests a second of a server that is busy, right before this."""
    begin: float
    seconds: float
    deadline: float
    answers: list[Answer]
    memory: float
    """The most MiB that both processes had."""

    @property
    def goodput(self) -> float:
        """Requests a second that were finished by their deadline, while others came."""
        end = self.begin + self.seconds
        return sum(not a.reason and a.end < end for a in self.answers) / self.seconds

    @property
    def share(self) -> float:
        """Goodput as a part of what can be served."""
        return self.goodput / self.capacity

    @property
    def refusals(self) -> list[float]:
        """Seconds until each request that was not let in was told so."""
        return [a.end - a.begin for a in self.answers if a.reason and a.reason != DEADLINE]

    @property
    def num_hung(self) -> int:
        return sum(a.end - a.begin > self.deadline + PATIENCE for a in self.answers)

    def row(self) -> dict[str, object]:
        served = [a for a in self.answers if not a.reason]
        first, whole = ([a.first - a.begin for a in served], [a.end - a.begin for a in served])
        return {
            "load": f"{self.factor:g}x",
            "can be /s": round(self.capacity, 1),
            "offered /s": round(len(self.answers) / self.seconds, 1),
            "goodput /s": round(self.goodput, 1),
            "p50 first s": round(percentile(first, 0.5), 3),
            "p99 first s": round(percentile(first, 0.99), 3),
            "p50 whole s": round(percentile(whole, 0.5), 3),
            "p99 whole s": round(percentile(whole, 0.99), 3),
            "p50 refusal s": round(percentile(self.refusals, 0.5), 4),
            "p99 refusal s": round(percentile(self.refusals, 0.99), 4),
            "MiB": round(self.memory),
            "failed": dict(Counter(a.reason for a in self.answers if a.reason).most_common()),
        }


@dataclass(frozen=True)
class Outcome:
    """What a campaign found."""

    memory: float
    """MiB of both processes before it."""
    levels: list[Level]

    @property
    def faults(self) -> list[str]:
        """What should not be."""
        peak, last = max(level.share for level in self.levels), self.levels[-1]
        refusal = percentile(last.refusals, 0.99)
        growth = max(level.memory for level in self.levels) - self.memory
        num_hung = sum(level.num_hung for level in self.levels)
        found = {
            f"goodput at {last.factor:g}x is {last.share / peak:.0%} of the peak": (
                last.share < MIN_GOODPUT * peak
            ),
            f"refusals take {refusal:.2f} s": refusal > MAX_REFUSAL,
            f"{num_hung} requests hung": num_hung > 0,
            f"memory grew by {growth:.0f} MiB": growth > MAX_GROWTH,
            "nothing was refused": not last.refusals,
        }
        return [fault for fault, is_there in found.items() if is_there]

    def report(self) -> dict[str, object]:
        return {
            "MiB before": round(self.memory),
            "levels": [level.row() for level in self.levels],
            "faults": self.faults,
        }


class Caller:
    """Asks a server for what some choice gives."""

    def __init__(
        self, server: RunningServer, asks: Callable[[random.Random], Ask], max_tokens: int,
        key: str | None,
    ) -> None:  # fmt: skip
        self._server = server
        self._client = AsyncClient(server.target, retries=False, key=key)
        self._asks = asks
        self._max_tokens = max_tokens
        self._choice = random.Random(0)

    async def ask(self, deadline: float) -> Answer:
        (prompt, adapter), first, reason = self._asks(self._choice), 0.0, ""
        begin = time.monotonic()
        try:
            async for _ in self._client.stream(
                prompt, adapter=adapter, timeout=deadline, max_tokens=self._max_tokens,
                temperature=0.0, ignore_eos=True,
            ):  # fmt: skip
                first = first or time.monotonic()
        except LoramuxError as error:
            reason = error.reason or error.code.name
        end = time.monotonic()
        return Answer(begin, first or end, end, reason)

    async def busy(self, count: int, seconds: float) -> list[Answer]:
        """Keep `count` requests under way for so long."""
        end = time.monotonic() + seconds

        async def one_after_the_other() -> list[Answer]:
            answers = []
            while time.monotonic() < end:
                answers.append(await self.ask(60.0))
            return answers

        found = await asyncio.gather(*(one_after_the_other() for _ in range(count)))
        return [answer for answers in found for answer in answers]

    async def offer(self, factor: float, count: int, seconds: float) -> Level:
        """Let requests come at random moments, and wait for all.

        Before that, it is found out what can be served: on a shared machine that changes.

        Args:
            factor: Times of what can be served.
            count: Requests that run at once.
            seconds: How long they come.
        """
        answers = await self.busy(count, seconds / 2)
        assert not any(answer.reason for answer in answers), answers
        capacity = len(answers) / (max(a.end for a in answers) - min(a.begin for a in answers))
        deadline = DEADLINES * statistics.median(a.end - a.begin for a in answers)
        tasks = []
        begin = due = time.monotonic()
        async with sampled_memory(self._server) as memory:
            while (due := due + self._choice.expovariate(factor * capacity)) < begin + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.append(asyncio.create_task(self.ask(deadline)))
            found = await asyncio.gather(*tasks)
        return Level(factor, capacity, begin, seconds, deadline, found, max(memory))

    async def close(self) -> None:
        await self._client.close()


@contextlib.asynccontextmanager
async def sampled_memory(server: RunningServer) -> AsyncIterator[list[float]]:
    """Yield what both processes have again and again."""
    samples = [memory_of(server)]

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.2)
            samples.append(memory_of(server))

    task = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        task.cancel()


def memory_of(server: RunningServer) -> float:
    pids = (server.pid, server.engine_pid)
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / (1 << 20)


async def campaign(
    server: RunningServer, asks: Callable[[random.Random], Ask], *, seconds: float,
    max_tokens: int = MAX_TOKENS, max_running: int = MAX_RUNNING,
    levels: Sequence[float] = LEVELS, key: str | None = None,
) -> Outcome:  # fmt: skip
    """Find out what a server can serve of which `max_running` run, and offer it some times that."""
    caller = Caller(server, asks, max_tokens, key)
    try:
        await caller.busy(max_running, seconds / 4)  # everything is loaded and warm after that
        before = memory_of(server)
        found = [await caller.offer(factor, max_running, seconds) for factor in levels]
    finally:
        await caller.close()
    return Outcome(before, found)


def demo_asks(choice: random.Random) -> Ask:
    words = ["abandon ->", "cat ->", "window ->", "seven ->"]
    return choice.choice(words), choice.choice([None, "reverse", "upper", "sort", "title"])


@contextlib.contextmanager
def demo_server(folder: Path) -> Iterator[RunningServer]:
    """Yield a server of the demo's base."""
    with RunningServer(
        folder, DEMO / "base", "--adapters", str(DEMO / "adapters"),
        "--max-running", str(MAX_RUNNING),
    ) as server:  # fmt: skip
        yield server


def table(outcome: Outcome) -> str:
    rows = [level.row() for level in outcome.levels]
    for row in rows:
        failed = row["failed"]
        assert isinstance(failed, dict)
        named = (f"{count} {reason}" for reason, count in failed.items())
        row["failed"] = ", ".join(named) or "none"
    lines = [markdown(rows)]
    lines.append(f"\n{'; '.join(outcome.faults) or 'All is as it should be'}.")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each level")
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, demo_server(Path(folder)) as server:
        outcome = asyncio.run(campaign(server, demo_asks, seconds=arguments.seconds))
    print(table(outcome))
    if arguments.output:
        arguments.output.write_text(json.dumps(outcome.report(), indent=2) + "\n")
    return int(bool(outcome.faults))


if __name__ == "__main__":
    sys.exit(main())
