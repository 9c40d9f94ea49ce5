"""Concurrent requests on one stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

from loramux_server.tasks import cancel_and_wait

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def multiplexed(
    requests: AsyncIterator[Request],
    answers: Callable[[Request], AsyncGenerator[Answer, None]],
    most: int,
) -> AsyncGenerator[Answer, None]:
    """Yield the answers to all `requests`, handled concurrently, as they are made.

    At most `most` requests are in progress; further ones are not read. Answers are made no faster
    than this generator is read. If a request fails, no more are read, and its error is raised once
    the others have ended.
    """
    found: asyncio.Queue[Answer | None] = asyncio.Queue(1)
    running = asyncio.create_task(_run(requests, answers, most, found))
    try:
        while (answer := await found.get()) is not None:
            yield answer
        await running
    finally:
        await cancel_and_wait(running)


async def _run(
    requests: AsyncIterator[Request],
    answers: Callable[[Request], AsyncGenerator[Answer, None]],
    most: int,
    found: asyncio.Queue[Answer | None],
) -> None:
    """Put all answers into `found`, and then None; raise the first error."""
    room = asyncio.Semaphore(most)
    failures: list[Exception] = []

    async def answer(request: Request) -> None:
        try:
            async with aclosing(answers(request)) as chunks:
                async for chunk in chunks:
                    await found.put(chunk)
        except Exception as error:
            failures.append(error)
            reading.cancel()
        finally:
            room.release()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                group.create_task(answer(request))
                await room.acquire()
        except Exception as error:
            failures.append(error)

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read())
    await found.put(None)
    if failures:
        raise failures[0]
