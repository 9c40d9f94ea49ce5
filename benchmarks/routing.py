"""Effect of routing by adapter affinity: the same requests with round-robin and with affinity.

Several servers, each with room for a part of the adapters on its device and for twice as many on
its host, get the same requests round-robin and by adapter. The number of loads matters most: the
cost of a load depends on the adapter's size and the disk, and the servers share the cores.

    python -m benchmarks.routing --shape small
"""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks import load, machine, server
from benchmarks.fixture import SHAPES, Shape, make_adapters, make_base
from loramux import AsyncClient
from loramux._channel import Routing
from loramux.bench import Planned, Record, closed_loop, parse_lengths, summarize

RANK = 16
WAYS: tuple[Routing, ...] = ("round_robin", "adapter")


@dataclass(frozen=True)
class Figures:
    """The results of one round."""

    tokens_per_second: float
    first_token_ms: float
    """Median time to the first token."""
    hit_ratio: float
    """Fraction of requests that found their adapter on the device."""
    loads: int
    """Adapters loaded to a device."""
    reads: int
    """Adapters loaded to a host, from a file."""
    most_requests: int
    """Of the server that had the most."""


def main(
    num_servers: Annotated[int, typer.Option("--servers", help="Number of servers.")] = 3,
    adapters: Annotated[int, typer.Option(help="Registered adapters.")] = 60,
    room: Annotated[int, typer.Option(help="Adapters that fit a server's device.")] = 12,
    requests: Annotated[int, typer.Option(help="Requests per round.")] = 400,
    concurrency: Annotated[int, typer.Option(help="Concurrent requests.")] = 12,
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 8,
    popularity: Annotated[str, typer.Option(help="As for `loramux bench`.")] = "zipf",
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "small",
    repeats: Annotated[int, typer.Option(help="Rounds of each policy; medians are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print loads, hits and throughput with both routing policies."""
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name, contextlib.ExitStack() as on:
        folder = Path(name)
        base = make_base(folder / "base", SHAPES[shape])
        names = make_adapters(folder / "adapters", SHAPES[shape], [RANK], adapters)
        memory = _bytes(SHAPES[shape]) * room
        arguments = (
            "--adapters", str(folder / "adapters"), "--threads", "1",
            "--adapter-memory", str(memory), "--host-adapter-memory", str(2 * memory),
        )  # fmt: skip

        def start(number: int) -> server.Running:
            return on.enter_context(server.running(folder / str(number), base, *arguments))

        with ThreadPoolExecutor(num_servers) as pool:
            servers = list(pool.map(start, range(num_servers)))
        rounds: dict[Routing, list[Figures]] = {way: [] for way in WAYS}
        for number in range(repeats + 1):
            planned = load.plan(
                requests, popularity=popularity, adapters=names, prompt=parse_lengths("8:32"),
                tokens=tokens, vocab_size=SHAPES[shape].vocab, seed=number,
            )  # fmt: skip
            for way in WAYS:
                # Evict what the other policy left on the devices before this one is measured.
                asyncio.run(_send(servers, planned, concurrency, way))
                if number:  # the first is a warm-up
                    rounds[way].append(_round(servers, planned, concurrency, way))
    print(
        f"{requests} requests, {adapters} adapters, {popularity}; {num_servers} servers with room "
        f"for {room} each; {shape}"
    )
    middle = {way: _middle(figures) for way, figures in rounds.items()}
    for way, found in middle.items():
        print(f"{way:<12}" + "  ".join(f"{key} {value:.4g}" for key, value in found.items()))
    ratios = {
        key: middle["adapter"][key] / max(middle["round_robin"][key], 1e-9)
        for key in ("loads", "reads", "tokens_per_second", "first_token_ms")
    }
    print("adapter ÷ round_robin: " + "  ".join(f"{key} {v:.2f}" for key, v in ratios.items()))
    if output:
        record = {
            "command": f"python -m benchmarks.routing --shape {shape} --servers {num_servers} "
            f"--adapters {adapters} "
            f"--room {room} --requests {requests} --concurrency {concurrency} --tokens {tokens} "
            f"--popularity {popularity} --repeats {repeats}",
            "ratios": ratios,
            "median": middle,
            "rounds": {way: [asdict(each) for each in figures] for way, figures in rounds.items()},
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _bytes(shape: Shape) -> int:
    """Return the bytes of an adapter in float32."""
    rows = sum(inputs + outputs for inputs, outputs in shape.features().values())
    return rows * RANK * shape.layers * 4


def _round(
    servers: Sequence[server.Running], planned: Sequence[Planned], concurrency: int, way: Routing
) -> Figures:
    before = [_counts(each) for each in servers]
    report = summarize(asyncio.run(_send(servers, planned, concurrency, way)))
    after = [_counts(each) for each in servers]
    counts = [
        {key: now[key] - then[key] for key in now} for now, then in zip(after, before, strict=True)
    ]

    def total(key: str) -> int:
        return sum(each[key] for each in counts)

    return Figures(
        tokens_per_second=report.output_tokens_per_second,
        first_token_ms=report.time_to_first_token.p50_ms,
        hit_ratio=total("hits") / max(1, total("hits") + total("misses")),
        loads=total("loads"),
        reads=total("reads"),
        most_requests=max(each["requests"] for each in counts),
    )


async def _send(
    servers: Sequence[server.Running], planned: Sequence[Planned], concurrency: int, way: Routing
) -> list[Record]:
    targets = [each.target for each in servers]
    async with AsyncClient(targets, routing=way) as client:
        records = await closed_loop(client, planned, concurrency, lambda _: None)
    if failed := [record.error for record in records if record.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    return records


def _counts(running: server.Running) -> dict[str, int]:
    found = {
        "hits": 'loramux_adapter_cache_hits_total{tier="device"}',
        "misses": 'loramux_adapter_cache_misses_total{tier="device"}',
        "loads": 'loramux_adapter_load_seconds_count{tier="device"}',
        "reads": 'loramux_adapter_load_seconds_count{tier="host"}',
        "requests": "loramux_queue_seconds_count",
    }
    return {key: int(running.metric(name)) for key, name in found.items()}


def _middle(figures: Sequence[Figures]) -> dict[str, float]:
    each = [asdict(figure) for figure in figures]
    return {key: median(found[key] for found in each) for key in each[0]}


if __name__ == "__main__":
    typer.run(main)
