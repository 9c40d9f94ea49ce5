"""Overhead of the gateway: the same requests over HTTP and over gRPC, in alternation.

Two workloads: streams of many tokens, each a separate event if the engine is slow enough, and
unary answers of one token, one request after the other.

    python -m benchmarks.gateway --shape small
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
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

PROMPT = list(range(3, 11))
BASE = "base"


@dataclass(frozen=True)
class Cost:
    """The results of one round."""

    gateway_us_per_token: float
    """CPU time of the gateway per streamed token, in microseconds."""
    frontend_us_per_token: float
    """CPU time of the server's frontend per token, over gRPC, in microseconds."""
    tokens_ratio: float
    """Streamed tokens per second: through the gateway ÷ over gRPC."""
    gateway_us_per_request: float
    """CPU time of the gateway per unary answer, in microseconds."""
    direct_ms: float
    """Median time of a unary answer of one token over gRPC, in milliseconds."""
    through_ms: float
    """The same through the gateway, on an open connection."""


def main(
    streams: Annotated[int, typer.Option(help="Concurrent streams.")] = 16,
    tokens: Annotated[int, typer.Option(help="Output tokens of each stream.")] = 128,
    requests: Annotated[int, typer.Option(help="Unary answers, one after the other.")] = 200,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "small",
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 5,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the overhead of the gateway per token and per request."""
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = make_base(folder / BASE, SHAPES[shape])
        write_tokenizer(base, SHAPES[shape].vocab)
        arguments = ("--max-running", str(streams), "--threads", "1")
        with (
            server.running(folder / "server", base, *arguments) as own,
            _gateway(own.target) as (gateway, port),
        ):
            frontend = psutil.Process(own.pid)
            _, *rounds = [  # the first is a warm-up
                asyncio.run(_round(frontend, gateway, own.target, port, streams, tokens, requests))
                for _ in range(repeats + 1)
            ]
    middle = {name: median(asdict(each)[name] for each in rounds) for name in asdict(rounds[0])}
    print(f"{streams} streams of {tokens} tokens, {requests} answers of one token; {shape}")
    print(
        f"a token:   gateway {middle['gateway_us_per_token']:.1f} us, "
        f"frontend {middle['frontend_us_per_token']:.1f} us; "
        f"tokens/s {middle['tokens_ratio']:.2f} of those over gRPC"
    )
    print(
        f"a request: gateway {middle['gateway_us_per_request']:.0f} us; "
        f"{middle['through_ms']:.2f} ms, over gRPC {middle['direct_ms']:.2f} ms"
    )
    if output:
        record = {
            "command": f"python -m benchmarks.gateway --shape {shape}",
            "shape": shape,
            "streams": streams,
            "tokens": tokens,
            "requests": requests,
            "median": middle,
            "rounds": [asdict(each) for each in rounds],
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _gateway(target: str) -> Iterator[tuple[psutil.Process, int]]:
    """Run `loramux gateway` for the block; yield its process and port."""
    command = [
        sys.executable, "-m", "loramux.cli", "gateway", "--target", target, "--port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            url = run.stdout.readline().partition(" ")[0]
            if not url:
                raise SystemExit("the gateway did not start")
            yield psutil.Process(run.pid), int(url.split("/")[2].rpartition(":")[2])
        finally:
            run.terminate()


async def _round(
    frontend: psutil.Process,
    gateway: psutil.Process,
    target: str,
    port: int,
    streams: int,
    tokens: int,
    requests: int,
) -> Cost:
    """Measure both workloads, each over gRPC and then through the gateway."""
    async with AsyncClient(target) as client:
        connection = await asyncio.open_connection("127.0.0.1", port)
        try:

            async def stream_directly() -> None:
                pieces = client.stream(PROMPT, max_tokens=tokens, temperature=0, ignore_eos=True)
                count = sum([len(piece.token_ids) async for piece in pieces])
                _demand(count == tokens)

            async def stream_through() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(_request(tokens, stream=True))
                    answer = await reader.read()  # until the end: the connection has no other use
                    _demand(answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"))
                finally:
                    writer.close()

            async def ask_directly() -> None:
                await client.generate(PROMPT, max_tokens=1, temperature=0, ignore_eos=True)

            async def ask_through() -> None:
                reader, writer = connection
                writer.write(_request(1, stream=False))
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _demand(head.startswith(b"http/1.1 200"))
                length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))

            before = _seconds(frontend)
            direct_seconds = await _together(stream_directly, streams)
            frontend_seconds = _seconds(frontend) - before
            before = _seconds(gateway)
            through_seconds = await _together(stream_through, streams)
            gateway_seconds = _seconds(gateway) - before
            direct = await _in_turn(ask_directly, requests)
            before = _seconds(gateway)
            through = await _in_turn(ask_through, requests)
            asked_seconds = _seconds(gateway) - before
        finally:
            connection[1].close()
    count = streams * tokens
    return Cost(
        gateway_us_per_token=1e6 * gateway_seconds / count,
        frontend_us_per_token=1e6 * frontend_seconds / count,
        tokens_ratio=direct_seconds / through_seconds,
        gateway_us_per_request=1e6 * asked_seconds / requests,
        direct_ms=1e3 * median(direct),
        through_ms=1e3 * median(through),
    )


def _request(tokens: int, *, stream: bool) -> bytes:
    body = json.dumps({
        "model": BASE, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": stream,
    }).encode()  # fmt: skip
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        + (b"connection: close\r\n" if stream else b"")
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )


def _demand(is_right: bool) -> None:
    if not is_right:
        raise SystemExit("an answer is incomplete")


async def _together(work: Callable[[], Awaitable[None]], count: int) -> float:
    """Return the seconds that `count` concurrent calls of `work` take."""
    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(count)))
    return time.perf_counter() - begin


async def _in_turn(work: Callable[[], Awaitable[None]], count: int) -> list[float]:
    """Return the seconds that each of `count` calls takes."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        await work()
        found.append(time.perf_counter() - begin)
    return found


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    typer.run(main)
