"""`loramux bench`."""

import asyncio
import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loramux.aio import AsyncClient
from loramux.bench import Record, Report, closed_loop, open_loop, parse_lengths, plan, summarize
from loramux.bench.workload import POPULARITIES
from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import Priority
from loramux.cli.tables import table_console


def bench(
    requests: Annotated[
        int, typer.Option("--requests", "-n", help="Number of requests to send.")
    ] = 64,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", help="Closed loop: requests in flight at once.")
    ] = 8,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, on average.")
    ] = None,
    popularity: Annotated[
        str,
        typer.Option(help=f"Distribution of requests over adapters: {', '.join(POPULARITIES)}."),
    ] = "distinct",
    adapters: Annotated[
        str | None,
        typer.Option(help="Comma-separated adapters to use; default: all on the server."),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="Prompt length in tokens: N, LOW:HIGH or lognormal:MEDIAN:SIGMA.")
    ] = "32:256",
    output: Annotated[str, typer.Option(help="Output length in tokens, in the same form.")] = "64",
    seed: Annotated[
        int, typer.Option(help="Random seed of prompts, lengths and choices of adapters.")
    ] = 0,
    warmup: Annotated[int, typer.Option(help="Warm-up requests, sent first and not counted.")] = 2,
    priority: Priority = 0,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Measure throughput and latency of a running server."""
    try:
        lengths = parse_lengths(prompt), parse_lengths(output)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console = Console(stderr=True)
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task("", total=requests)

        async def run() -> Report:
            async with AsyncClient(server) as client:
                info = await client.info()
                names = (
                    adapters.split(",")
                    if adapters
                    else [adapter.reference for adapter in await client.adapters.list()]
                )
                planned = plan(
                    requests + warmup,
                    popularity=popularity,
                    adapters=names,
                    prompt=lengths[0],
                    output=lengths[1],
                    vocab_size=info.vocab_size,
                    seed=seed,
                    priority=priority,
                )

                def done(_: Record) -> None:
                    bar.advance(task)

                await closed_loop(client, planned[:warmup], max(1, warmup), lambda _: None)
                if rate:
                    records = await open_loop(client, planned[warmup:], rate, seed, done)
                else:
                    records = await closed_loop(client, planned[warmup:], concurrency, done)
                return summarize(records)

        try:
            report = asyncio.run(run())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    if as_json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        table_console().print(_table(report))


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("requests", f"{report.requests} ({report.failures} failed)")
    if report.first_error:
        table.add_row("first error", report.first_error)
    table.add_row("time", f"{report.seconds:.2f} s")
    table.add_row("output tokens/s", f"{report.output_tokens_per_second:.1f}")
    table.add_row("requests/s", f"{report.requests_per_second:.2f}")
    for label, quantiles in (
        ("time to first token", report.time_to_first_token),
        ("inter-token latency", report.inter_token),
        ("request latency", report.request_latency),
    ):
        table.add_row(
            label,
            f"p50 {quantiles.p50_ms:.1f} ms  p90 {quantiles.p90_ms:.1f} ms  "
            f"p99 {quantiles.p99_ms:.1f} ms",
        )
    return table
