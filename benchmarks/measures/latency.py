"""Latency of a cold adapter, during loads of others, and with a shared prompt."""

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

from benchmarks import load
from benchmarks.setting import AdapterSet, Setting
from loramux import AsyncClient
from loramux.bench import Planned, Record, open_loop, summarize

ADAPTERS = AdapterSet(32)
PROMPT_TOKENS = 32
STREAMS = 8
LOADS_PER_SECOND = 5.0
SETTLE_SECONDS = 1.0
"""Time for the prompts of the streams."""
SHARED_TOKENS, OWN_TOKENS = 496, 16


def cold(num_loads: int, *, on_disk: bool) -> Callable[[Setting], list[float]]:
    """Measure the time to first token of a cold adapter minus that of the same one, warm, in ms.

    The server was restarted, so that none of `num_loads` adapters is in its memory. Their files are
    in the page cache, or with `on_disk` dropped from it.
    """

    def measure(setting: Setting) -> list[float]:
        names = setting.names(ADAPTERS)
        differences = []
        for seed in range(setting.repeats):
            prompts = _prompts(setting, seed)
            with setting.serving(ADAPTERS, "--no-prefix-cache") as server:
                load.touch(server.target, [prompts(None), prompts(names[-1])])
                _move_files(setting.server_folder(ADAPTERS), on_disk=on_disk)
                seconds = load.first_token_seconds(
                    server.target,
                    # The first one opens the connection.
                    [
                        prompts(None),
                        *(prompts(name) for name in names[:num_loads] for _ in range(2)),
                    ],
                )
            pairs = zip(seconds[1::2], seconds[2::2], strict=True)
            differences.append(1e3 * median(first - second for first, second in pairs))
        return differences

    return measure


def during_loads(num_loads: int) -> Callable[[Setting], list[float]]:
    """Measure the p99 inter-token latency of streams while adapters load, ÷ without loads.

    Eight streams of the base run. At random times short requests arrive for `num_loads` adapters,
    which are cold in one case, their files not in the page cache either; in the other case as many
    arrive for warm ones, at the same times.
    """

    def measure(setting: Setting) -> list[float]:
        names = setting.names(ADAPTERS)
        cold_names, warm_names = names[:num_loads], names[num_loads:]
        ratios = []
        for seed in range(setting.repeats):
            prompts = _prompts(setting, seed)
            visits = {
                "cold": [prompts(name) for name in cold_names],
                "warm": [prompts(warm_names[i % len(warm_names)]) for i in range(num_loads)],
            }
            with setting.serving(ADAPTERS, "--no-prefix-cache") as server:
                load.touch(server.target, [prompts(None), *visits["warm"]])
                _move_files(setting.server_folder(ADAPTERS), on_disk=True)
                # Each goes first equally often.
                order = ("cold", "warm") if seed % 2 else ("warm", "cold")
                # They are cancelled before that.
                tokens = setting.shape.context - PROMPT_TOKENS
                streams = [replace(prompts(None), max_tokens=tokens) for _ in range(STREAMS)]
                p99 = {
                    kind: asyncio.run(_p99_ms(server.target, streams, visits[kind], seed))
                    for kind in order
                }
            ratios.append(p99["cold"] / p99["warm"])
        return ratios

    return measure


def shared_prompt(setting: Setting) -> list[float]:
    """Measure the mean time to first token with the prefix cache, ÷ without.

    32 requests for one adapter run one after the other; they share the first 496 of 512 tokens of
    their prompts. The first one, which fills the cache, is included.
    """
    adapter = setting.names(ADAPTERS)[0]
    with (
        setting.serving(ADAPTERS) as sharing,
        setting.serving(ADAPTERS, "--no-prefix-cache", place="plain-server") as plain,
    ):
        for server in (sharing, plain):
            load.touch(server.target, [Planned([], None, 1), Planned([], adapter, 1)])
        ratios = []
        for seed in range(setting.repeats):
            shared = _tokens(setting, SHARED_TOKENS, random.Random(f"shared/{seed}"))
            rng = random.Random(f"own/{seed}")
            requests = [
                Planned(shared + _tokens(setting, OWN_TOKENS, rng), adapter, 1) for _ in range(32)
            ]
            with_cache, without = (
                mean(load.first_token_seconds(server.target, requests))
                for server in (sharing, plain)
            )
            ratios.append(with_cache / without)
    return ratios


async def _p99_ms(target: str, streams: list[Planned], visits: list[Planned], seed: int) -> float:
    """Return the p99 inter-token latency of `streams` while `visits` are answered."""
    records = [Record(request.adapter, time.perf_counter()) for request in streams]
    async with AsyncClient(target) as client, asyncio.TaskGroup() as group:
        listeners = [
            group.create_task(_listen(client, request, record))
            for request, record in zip(streams, records, strict=True)
        ]
        await asyncio.sleep(SETTLE_SECONDS)
        begin = time.perf_counter()
        answered = await open_loop(client, visits, LOADS_PER_SECOND, seed, lambda _: None)
        end = time.perf_counter()
        for listener in listeners:
            listener.cancel()
    for record in answered:
        if record.error:
            raise SystemExit(f"a request for {record.adapter} failed: {record.error}")
    for record in records:
        record.chunks = [chunk for chunk in record.chunks if begin <= chunk[0] <= end]
    return summarize(records).inter_token.p99_ms


async def _listen(client: AsyncClient, request: Planned, record: Record) -> None:
    """Record the token times of a stream until it ends or is cancelled."""
    async for chunk in client.stream(
        request.prompt, max_tokens=request.max_tokens, temperature=0, ignore_eos=True
    ):
        record.chunks.append((time.perf_counter(), len(chunk.token_ids)))


def _prompts(setting: Setting, seed: int) -> Callable[[str | None], Planned]:
    """Return a function that makes requests for one token, each with a different prompt."""
    rng = random.Random(seed)
    return lambda adapter: Planned(_tokens(setting, PROMPT_TOKENS, rng), adapter, 1)


def _tokens(setting: Setting, count: int, rng: random.Random) -> list[int]:
    return [rng.randrange(3, setting.shape.vocab) for _ in range(count)]


def _move_files(server_folder: Path, *, on_disk: bool) -> None:
    """Read the files of a store into the page cache, or drop them from it."""
    for blob in (server_folder / "store" / "blobs").glob("*/*"):
        if not on_disk:
            blob.read_bytes()
        elif hasattr(os, "posix_fadvise"):
            with blob.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
