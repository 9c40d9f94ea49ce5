"""What asks a server, in processes of its own, on half of the cores: nothing delays who measures.

Requests come at random moments, whatever became of those before them.
"""

import asyncio
import gc
import multiprocessing
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from loramux.aio import AsyncClient
from loramux.errors import LoramuxError
from tests.overload.cores import halves, stay_on
from tests.support.load import Ask


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    due: float
    """When it had to be sent; all moments are those of the monotonic clock."""
    begin: float
    """When it was sent: what is later than `due` is not the server's doing."""
    first: float
    """When its first token came; its end where none did."""
    end: float
    reason: str = ""
    """Why it failed; empty if it did not."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Whom to ask, and what."""

    target: str
    asks: Callable[[random.Random], Ask]
    """A function of a module: it has to be found by its name in another process."""
    max_tokens: int
    n: int = 1
    """Completions of each request."""
    key: str | None = None
    num_clients: int = 1
    retries: bool = False


Asked = Coroutine[Any, Any, Answer]


START_SECONDS = 1.0
"""A process that starts meanwhile takes work of its own."""


class Generator:
    """Keeps processes that ask, until the block ends."""

    def __init__(self, asking: Asking, num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._asking = asking
        _, cores = halves()
        self._pool = ProcessPoolExecutor(
            num_processes, context, initializer=_begin, initargs=(cores,)
        )
        self._num_processes = num_processes

    def busy(self, count: int, seconds: float) -> "Future[list[Answer]]":
        """Keep `count` requests under way for so long."""
        return self._pool.submit(_busy, self._asking, count, seconds)

    def offer(
        self, rate: float, seconds: float, deadline: float, seed: int
    ) -> "Future[list[Answer]]":
        """Send so many requests a second for so long, each with a deadline in seconds."""
        return self._pool.submit(_offer, self._asking, rate, seconds, deadline, seed)

    def ready(self) -> None:
        """Return when all processes have started."""
        list(self._pool.map(time.sleep, [START_SECONDS] * self._num_processes))

    def gaps(self, count: int, seconds: float) -> "Future[list[float]]":
        """Do as `busy`, and tell the seconds between the pieces of each stream."""
        return self._pool.submit(_gaps, self._asking, count, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _begin(cores: set[int]) -> None:
    stay_on(cores)
    gc.freeze()


def _busy(asking: Asking, count: int, seconds: float) -> list[Answer]:
    async def run() -> list[Answer]:
        async with _asker(asking, seed=0) as ask:
            return await _one_after_the_other(ask, count, seconds)

    return asyncio.run(run())


def _gaps(asking: Asking, count: int, seconds: float) -> list[float]:
    gaps: list[float] = []

    async def run() -> None:
        async with _asker(asking, seed=0, gaps=gaps) as ask:
            await _one_after_the_other(ask, count, seconds)

    asyncio.run(run())
    return gaps


async def _one_after_the_other(
    ask: Callable[[float, float], Asked], count: int, seconds: float
) -> list[Answer]:
    """Keep `count` requests under way."""
    end = time.monotonic() + seconds

    async def line() -> list[Answer]:
        answers = []
        while (now := time.monotonic()) < end:
            answers.append(await ask(now, 60.0))
        return answers

    found = await asyncio.gather(*(line() for _ in range(count)))
    return [answer for answers in found for answer in answers]


def _offer(asking: Asking, rate: float, seconds: float, deadline: float, seed: int) -> list[Answer]:
    async def run() -> list[Answer]:
        choice = random.Random(seed)
        async with _asker(asking, seed) as ask:
            begin = due = time.monotonic()
            tasks = []
            # Who comes too late does not catch up: then less is offered, and that is seen.
            while (due := due + choice.expovariate(rate)) < begin + seconds > time.monotonic():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.append(asyncio.create_task(ask(due, deadline)))
            return await asyncio.gather(*tasks)

    return asyncio.run(run())


@asynccontextmanager
async def _asker(
    asking: Asking, seed: int, gaps: list[float] | None = None
) -> AsyncIterator[Callable[[float, float], Asked]]:
    """Yield what sends a request that is due at a moment, with a deadline in seconds."""
    choice = random.Random(seed)
    clients = [
        AsyncClient(asking.target, retries=asking.retries, key=asking.key)
        for _ in range(asking.num_clients)
    ]

    async def ask(due: float, deadline: float) -> Answer:
        (prompt, adapter), first, reason = asking.asks(choice), 0.0, ""
        client = choice.choice(clients)
        begin = last = time.monotonic()
        try:
            async for _ in client.stream(
                prompt, adapter=adapter, timeout=deadline, max_tokens=asking.max_tokens,
                n=asking.n, temperature=0.0, ignore_eos=True,
            ):  # fmt: skip
                now = time.monotonic()
                if first and gaps is not None:
                    gaps.append(now - last)
                first, last = first or now, now
        except LoramuxError as error:
            reason = error.reason or error.code.name
        end = time.monotonic()
        return Answer(due, begin, first or end, end, reason)

    try:
        yield ask
    finally:
        for client in clients:
            await client.close()
