"""Answers requests side by side, and tries again where the server had no room."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from loramux.gateway.batch.answered import OK, Answered, OutputFile, Response
from loramux.gateway.batch.lines import Line
from loramux.gateway.door import Door, Reply

_AGAIN = (429, 503)
"""Statuses of a server that has no room, or is away."""
_FIRST_SECONDS, _MOST_SECONDS = 0.5, 30.0
"""Waits between two tries where the server does not say how long."""
_LEAST_SECONDS = 0.05
"""The shortest wait where it does."""


@dataclass
class Progress:
    """How far it is."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Status -> how many requests ended with it."""
    num_again: int = 0
    """How often one was asked again."""

    @property
    def num_failed(self) -> int:
        """Requests that did not end well."""
        return self.statuses.total() - self.statuses[OK]


async def answer_all(
    lines: Iterable[Line],
    door: Door,
    output: OutputFile,
    *,
    concurrency: int,
    patience: float,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Answer `lines`, but those that are answered in `output`.

    Args:
        lines: The requests; taken one by one.
        door: Who answers.
        output: Where answers go.
        concurrency: Requests under way at once.
        patience: Seconds for which one is tried again where the server has no room for it.
        on_progress: Called after each answer, and before one is asked again.

    Raises:
        ChangedFileError: From `lines`; what is under way then is left to another run.
        OSError: `lines` cannot be read, or `output` not be written.
    """
    progress = Progress()
    left = (line for line in lines if line.custom_id not in output.done)

    def again() -> None:
        progress.num_again += 1
        on_progress(progress)

    async def work(left: Iterator[Line]) -> None:
        for line in left:
            reply = await _answer(line, door, patience, again)
            response = Response(
                reply.status, reply.headers.get("x-request-id", ""), msgspec.Raw(reply.body)
            )
            output.write(Answered.of(line.custom_id, response))
            progress.statuses[reply.status] += 1
            on_progress(progress)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(left))
    except ExceptionGroup as errors:
        # The first ended the others.
        raise errors.exceptions[0] from None
    return progress


async def _answer(line: Line, door: Door, patience: float, on_again: Callable[[], None]) -> Reply:
    """Return the answer to one request; the last one if the server never had room."""
    body, wait = msgspec.json.encode(line.body), _FIRST_SECONDS
    until = time.monotonic() + patience
    while True:
        reply = await door.post(line.url, body)
        told = reply.headers.get("retry-after-ms")
        # Not all at one moment, and never sooner than the server says.
        seconds = (
            max(float(told) / 1000, _LEAST_SECONDS) * random.uniform(1.0, 1.25)
            if told
            else wait * random.uniform(0.5, 1.0)
        )
        if reply.status not in _AGAIN or time.monotonic() + seconds > until:
            return reply
        on_again()
        await asyncio.sleep(seconds)
        wait = min(2 * wait, _MOST_SECONDS)
