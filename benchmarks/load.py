"""Load on our own server: the requests and their results."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from loramux import AsyncClient
from loramux.bench import Lengths, Planned, Record, Report, closed_loop, parse_lengths, summarize
from loramux.bench import plan as plan_requests

TOUCH_CONCURRENCY = 32


def plan(
    num_requests: int,
    *,
    popularity: str,
    adapters: Sequence[str],
    prompt: Lengths,
    tokens: int,
    vocab_size: int,
    seed: int,
) -> list[Planned]:
    """Return seeded requests; their prompts do not depend on their adapters."""
    output = parse_lengths(str(tokens))
    requests = plan_requests(
        num_requests, popularity="base", adapters=(), prompt=prompt, output=output,
        vocab_size=vocab_size, seed=seed,
    )  # fmt: skip
    if popularity == "base":
        return requests
    choices = plan_requests(
        num_requests, popularity=popularity, adapters=adapters, prompt=parse_lengths("1"),
        output=output, vocab_size=vocab_size, seed=seed,
    )  # fmt: skip
    return [
        replace(request, adapter=choice.adapter)
        for request, choice in zip(requests, choices, strict=True)
    ]


async def closed(target: str, requests: Sequence[Planned], concurrency: int) -> list[Record]:
    """Send `requests` in a closed loop; exit if one fails."""
    async with AsyncClient(target) as client:
        records = await closed_loop(client, requests, concurrency, lambda _: None)
    for record in records:
        if record.error:
            raise SystemExit(f"a request for {record.adapter or 'the base'}: {record.error}")
    return records


def run(target: str, requests: Sequence[Planned], concurrency: int) -> Report:
    """Return the figures of `requests`."""
    return summarize(asyncio.run(closed(target, requests, concurrency)))


def first_token_seconds(target: str, requests: Sequence[Planned]) -> list[float]:
    """Send `requests` one after the other and return the time to the first token of each."""
    records = asyncio.run(closed(target, requests, 1))
    return [record.chunks[0][0] - record.sent for record in records]


def touch(target: str, requests: Sequence[Planned]) -> None:
    """Warm up: load the adapters of `requests`, unmeasured."""
    short = [
        Planned([3] * 8, adapter, 2)
        for adapter in dict.fromkeys(request.adapter for request in requests)
    ]
    asyncio.run(closed(target, short, TOUCH_CONCURRENCY))
