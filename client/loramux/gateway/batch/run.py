"""Answers requests concurrently, and retries those that an overloaded server refuses."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loramux.gateway.batch.answered import OK, Answered, OutputFile, Response
from loramux.gateway.batch.lines import Line
from loramux.gateway.in_process import InProcessGateway, Reply

_AGAIN = (429, 503)
"""Statuses of an overloaded or unavailable server, which are retried."""
_FIRST_SECONDS, _MOST_SECONDS = 0.5, 30.0
"""First and longest backoff if the server does not send a retry delay."""
_LEAST_SECONDS = 0.05
"""Shortest wait if it does."""


@dataclass
class Progress:
    """Progress of a batch."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Status -> how many requests ended with it."""
    num_again: int = 0
    """Number of retries."""

    @property
    def num_failed(self) -> int:
        """Requests that ended with an error."""
        return self.statuses.total() - self.statuses[OK]


async def answer_all(
    lines: Iterable[Line],
    gateway: InProcessGateway,
    output: OutputFile,
    *,
    concurrency: int,
    patience: float,
    priority: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Answer those of `lines` that are not answered in `output`.

    Args:
        lines: The requests; consumed one by one.
        gateway: Answers them.
        output: Where responses are written.
        concurrency: Requests in progress at once.
        patience: Seconds for which a request is retried if the server is overloaded.
        priority: Priority of requests that set none; None leaves them unchanged.
        on_progress: Called after each response, and before each retry.

    Raises:
        ChangedFileError: From `lines`; requests in progress are cancelled and left to another run.
        OSError: `lines` cannot be read, or `output` cannot be written.
    """
    progress = Progress()
    left = (line for line in lines if line.custom_id not in output.done)

    def again() -> None:
        progress.num_again += 1
        on_progress(progress)

    async def work(left: Iterator[Line]) -> None:
        for line in left:
            body = line.body
            if priority is not None and body.get("priority") is None:
                body = body | {"priority": priority}
            reply = await _answer(line.url, body, gateway, patience, again)
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
        # The first error cancelled the other tasks.
        raise errors.exceptions[0] from None
    return progress


async def _answer(
    url: str,
    body: dict[str, Any],
    gateway: InProcessGateway,
    patience: float,
    on_again: Callable[[], None],
) -> Reply:
    """Return the reply to one request: the last refusal if `patience` seconds are over."""
    raw, wait = msgspec.json.encode(body), _FIRST_SECONDS
    until = time.monotonic() + patience
    while True:
        reply = await gateway.post(url, raw)
        retry_after = reply.headers.get("retry-after-ms")
        # With jitter, and never sooner than the server says.
        seconds = (
            max(float(retry_after) / 1000, _LEAST_SECONDS) * random.uniform(1.0, 1.25)
            if retry_after
            else wait * random.uniform(0.5, 1.0)
        )
        if reply.status not in _AGAIN or time.monotonic() + seconds > until:
            return reply
        on_again()
        await asyncio.sleep(seconds)
        wait = min(2 * wait, _MOST_SECONDS)
