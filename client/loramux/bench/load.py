"""Load loops: send a workload and record when each token arrives."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loramux.aio import AsyncClient
from loramux.bench.workload import Planned
from loramux.errors import LoramuxError

Done = Callable[["Record"], None]


@dataclass(slots=True)
class Record:
    """The outcome of one request. Times are in seconds on one monotonic clock."""

    adapter: str | None
    sent: float
    chunks: list[tuple[float, int]] = field(default_factory=list)
    """(time, number of tokens) of each chunk."""
    error: str | None = None


async def closed_loop(
    client: AsyncClient, requests: Sequence[Planned], concurrency: int, done: Done
) -> list[Record]:
    """Keep `concurrency` requests in flight until all have completed."""
    left = iter(requests)
    records: list[Record] = []

    async def worker() -> None:
        for request in left:
            record = await _send(client, request)
            records.append(record)
            done(record)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return records


async def open_loop(
    client: AsyncClient, requests: Sequence[Planned], rate: float, seed: int, done: Done
) -> list[Record]:
    """Send requests as a Poisson process of `rate` per second, regardless of the responses."""
    rng = random.Random(seed)
    records: list[Record] = []

    async def one(request: Planned) -> None:
        record = await _send(client, request)
        records.append(record)
        done(record)

    async with asyncio.TaskGroup() as group:
        due = time.perf_counter()
        for request in requests:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(request))
    return records


async def _send(client: AsyncClient, request: Planned) -> Record:
    record = Record(request.adapter, time.perf_counter())
    try:
        async for chunk in client.stream(
            request.prompt,
            adapter=request.adapter,
            max_tokens=request.max_tokens,
            temperature=0,
            ignore_eos=True,
            priority=request.priority,
        ):
            record.chunks.append((time.perf_counter(), len(chunk.token_ids)))
    except LoramuxError as error:
        record.error = f"{type(error).__name__}: {error}"
    return record
