"""CPU time of the frontend per streamed token, over gRPC.

With the shape `small` the engine is slow enough that each token is a separate message. With `tiny`
it is faster than the frontend, and messages have several tokens. Text is decoded. No adapters are
used, since their tokens cost the frontend the same.

    python -m benchmarks.frontend --shape small
"""

import asyncio
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer

from benchmarks import machine, server
from benchmarks.fixture import SHAPES, make_base
from benchmarks.peers import write_tokenizer
from loramux import AsyncClient
from loramux.bench import Record, closed_loop, parse_lengths, plan, summarize


@dataclass(frozen=True)
class Cost:
    """The results of one run."""

    frontend_us: float
    """CPU time of the frontend per token, in microseconds."""
    client_us: float
    """CPU time of this process per token, in microseconds."""
    message_tokens: float
    """Mean tokens per message."""
    tokens_per_second: float


def main(
    streams: Annotated[int, typer.Option(help="Concurrent streams.")] = 32,
    tokens: Annotated[int, typer.Option(help="Output tokens of each stream.")] = 256,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "small",
    repeats: Annotated[int, typer.Option(help="Runs; medians are reported.")] = 5,
    interval: Annotated[int, typer.Option(help="The server's --stream-interval.")] = 1,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the CPU time of the frontend per streamed token."""
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = make_base(folder / "base", SHAPES[shape])
        write_tokenizer(base, SHAPES[shape].vocab)
        # One thread: the measured process needs a core.
        arguments = (
            "--max-running", str(streams), "--threads", "1", "--stream-interval", str(interval),
        )  # fmt: skip
        with server.running(folder / "server", base, *arguments) as own:
            frontend = psutil.Process(own.pid)
            _, *runs = [  # the first is a warm-up
                _measure(frontend, own.target, shape, streams, tokens) for _ in range(repeats + 1)
            ]
    middle = {name: median(asdict(run)[name] for run in runs) for name in asdict(runs[0])}
    print(f"{streams} streams of {tokens} tokens, {middle['message_tokens']:.2f} per message:")
    print(f"frontend {middle['frontend_us']:.1f} us per token   runs", end=" ")
    print(" ".join(f"{run.frontend_us:.1f}" for run in runs))
    print(f"client   {middle['client_us']:.1f} us")
    print(f"{middle['tokens_per_second']:.0f} tokens/s")
    if output:
        record = {
            "command": f"python -m benchmarks.frontend --shape {shape} --interval {interval}",
            "shape": shape,
            "streams": streams,
            "tokens": tokens,
            "interval": interval,
            "median": middle,
            "runs": [asdict(run) for run in runs],
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _measure(frontend: psutil.Process, target: str, shape: str, streams: int, tokens: int) -> Cost:
    before, own = _seconds(frontend), time.process_time()
    records = asyncio.run(_stream(target, shape, streams, tokens))
    used, own = _seconds(frontend) - before, time.process_time() - own
    report = summarize(records)
    if report.failures:
        raise SystemExit(f"{report.failures} requests failed: {report.first_error}")
    count = report.output_tokens
    return Cost(
        frontend_us=1e6 * used / count,
        client_us=1e6 * own / count,
        message_tokens=count / sum(len(record.chunks) for record in records),
        tokens_per_second=report.output_tokens_per_second,
    )


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _stream(target: str, shape: str, streams: int, tokens: int) -> list[Record]:
    requests = plan(
        streams, popularity="base", adapters=[], prompt=parse_lengths("8"),
        output=parse_lengths(str(tokens)), vocab_size=SHAPES[shape].vocab,
    )  # fmt: skip
    async with AsyncClient(target) as client:
        return await closed_loop(client, requests, streams, lambda _: None)


if __name__ == "__main__":
    typer.run(main)
